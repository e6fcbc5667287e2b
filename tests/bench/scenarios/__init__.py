"""The scenarios of the benchmark: each module defines the cases of one scenario."""
