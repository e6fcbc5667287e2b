"""Connects to RabbitMQ. In `serve`, only this package imports aio_pika and aiormq. It does not import `server`."""
