"""Measurements, which print figures and never fail because something takes too long."""
