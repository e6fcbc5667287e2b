"""The scenarios: each module makes the cases of one scenario."""
