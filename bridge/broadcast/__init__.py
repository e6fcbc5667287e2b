"""Decides which client gets which update, and when. All clients share one log; each connection has a cursor."""
