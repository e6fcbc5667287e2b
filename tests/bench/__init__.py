"""Measurements, which print figures and assert nothing about time."""
