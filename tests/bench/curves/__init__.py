"""Measures how the costs of the bridge grow, fits a line to each growth, and draws it."""
