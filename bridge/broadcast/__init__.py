"""Decides which client gets which update, and when, with one log and a cursor for each connection."""
