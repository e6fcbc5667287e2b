"""Connects to RabbitMQ.

In `serve`, only this package imports aio_pika and aiormq. `bridge.amqp` does not import `bridge.server`.
"""
