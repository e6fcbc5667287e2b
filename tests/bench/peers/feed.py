"""What the floor sends: each event of the exchange as an update, one a line, on standard output.

A process of its own, because only the fan-out is the floor: what consuming costs is not counted there.
"""

import os
import sys
import time

from tests.bench.amqp import Channel


def main() -> None:
    """The program. The pipe holds it back where it is faster than whoever reads its output."""
    with Channel(os.environ["AMQP"], timeout_s=None) as channel:
        for body in channel.consume(os.environ["EXCHANGE"]):
            update = b'{"type":"killmail","data":%b,"timestamp":%d}\n' % (body, time.time() * 1000)
            os.write(sys.stdout.fileno(), update)


if __name__ == "__main__":
    main()
