"""The definition of an update: schemas, validation and the envelope.

Pure: no module here opens a socket, reads a clock, logs, or imports other packages of the bridge.
"""
