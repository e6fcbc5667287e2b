"""Writes each event of the exchange to standard output as an update, one per line.

The program `floor` reads these lines and sends them to its clients. The feed is a separate process, so that the cost of
the program `floor` does not include consuming from the broker.
"""

import os
import sys
import time

from tests.bench.amqp import Channel


def main() -> None:
    """Runs the program. If the reader of the output is too slow, the pipe fills up, and the program waits."""
    with Channel(os.environ["AMQP"], timeout_s=None) as channel:
        for body in channel.consume(os.environ["EXCHANGE"]):
            update = b'{"type":"killmail","data":%b,"timestamp":%d}\n' % (body, time.time() * 1000)
            os.write(sys.stdout.fileno(), update)


if __name__ == "__main__":
    main()
