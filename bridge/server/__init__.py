"""Serves clients with sockets, HTTP and WebSocket.

This is the only package of the command `serve` that imports the library websockets.
"""
