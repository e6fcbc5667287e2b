"""Serves clients with sockets, HTTP and WebSocket.

Of the code that the command `serve` runs, only this package imports the library websockets.
"""
