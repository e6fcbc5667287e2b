"""Other programs that do what the bridge is for, to be measured beside it."""
