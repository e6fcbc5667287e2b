"""A bridge from a RabbitMQ fanout exchange to WebSocket clients, for killmails and other updates of a killboard."""

from importlib.metadata import version

__version__ = version("edk-bridge")
