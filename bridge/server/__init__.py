"""Serves clients: sockets, HTTP and WebSocket. In `serve`, only this package imports the library websockets."""
