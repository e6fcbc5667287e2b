"""RabbitMQ. The only part of the bridge in serving that imports aio_pika and aiormq. It does not import `server`."""
