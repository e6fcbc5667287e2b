"""Other programs that broadcast events, for comparison with the bridge."""
