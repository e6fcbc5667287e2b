"""A soak test: all kinds of clients and faults at the same time, against one bridge, for ten minutes."""
