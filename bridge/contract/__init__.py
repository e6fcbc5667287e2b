"""What an update is: schemas, validation, the envelope.

Pure: nothing in here opens a socket, reads a clock, logs, or imports anything else of the bridge.
"""
