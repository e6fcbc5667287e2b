"""Everything at once, for ten minutes, against one bridge: what must hold in an hour is looked at all the time."""
