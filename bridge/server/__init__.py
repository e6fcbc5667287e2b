"""Clients: sockets, HTTP, WebSocket. The only part of the bridge in serving that imports websockets."""
