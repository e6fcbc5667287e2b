"""Sends one message by AMQP 1.0, for Debian's Python and its package python3-qpid-proton, which PyPI has no wheel of.

`python3 proton_sender.py URL ADDRESS KIND BODY`, where KIND is `data` for a data section or `value` for what proton
makes of a text unless told otherwise. Ends with 0 when the broker has accepted it.
"""

import sys

from proton import Message  # type: ignore[import-not-found]  # of the system's Python
from proton.utils import BlockingConnection  # type: ignore[import-not-found]  # the same

url, address, kind, body = sys.argv[1:]
connection = BlockingConnection(url, allowed_mechs="PLAIN", allow_insecure_mechs=True)
message = Message(inferred=True, body=body.encode()) if kind == "data" else Message(body=body)
connection.create_sender(address).send(message)
connection.close()
