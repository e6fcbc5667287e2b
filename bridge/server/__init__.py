"""Serves clients with sockets, HTTP, WebSocket and Server-Sent Events.

This is the only package of the command `serve` that imports the library websockets.
"""
