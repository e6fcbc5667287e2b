"""Sends one message over AMQP 1.0, with Debian's Python and its package python3-qpid-proton.

The program needs Debian's Python, because PyPI has no wheel of the AMQP 1.0 client proton.

The command is `python3 proton_sender.py URL ADDRESS KIND BODY`. KIND is `data` if the body is sent in a data section,
or `value` if it is sent in the section that proton uses for texts by default. The exit code is 0 if the broker has
accepted the message.
"""

import sys

from proton import Message  # type: ignore[import-not-found]  # only the system's Python has the package
from proton.utils import BlockingConnection  # type: ignore[import-not-found]  # only the system's Python has the package

url, address, kind, body = sys.argv[1:]
connection = BlockingConnection(url, allowed_mechs="PLAIN", allow_insecure_mechs=True)
message = Message(inferred=True, body=body.encode()) if kind == "data" else Message(body=body)
connection.create_sender(address).send(message)
connection.close()
