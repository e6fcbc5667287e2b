"""The definition of an update: schemas, validation and the envelope.

The package is pure: no module opens a socket, reads a clock, logs, or imports other packages of the bridge.
"""
