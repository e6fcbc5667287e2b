"""`python tests/support/timed_bridge.py TIMING serve ...`: `edk-bridge` with time constants of a test's own.

TIMING is a JSON object with fields of `Timing`; the others keep their values.
"""

import json
import sys

from bridge.cli import cli
from bridge.timing import Timing

if __name__ == "__main__":
    cli.main(sys.argv[2:], prog_name="edk-bridge", obj=Timing(**json.loads(sys.argv[1])))
