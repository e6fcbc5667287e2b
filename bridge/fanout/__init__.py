"""WebSocket. The only part of the bridge that imports websockets; it knows nothing of RabbitMQ."""
