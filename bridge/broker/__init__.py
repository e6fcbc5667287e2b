"""RabbitMQ. The only part of the bridge that imports aio_pika; it knows nothing of WebSockets."""
