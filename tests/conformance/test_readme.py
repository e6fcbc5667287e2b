"""The examples of `schemas/README.md` run as they stand, and find every vector judged as it says."""

import re
import subprocess
import sys

from bridge.contract.catalog import PACKAGED
from tests.conformance import vectors
from tests.conformance.validators import SCHEMAS
from tests.support.prepare import NODE

EXPECTED = sorted(f"{name}: {len(vectors.load(name)[1])} vectors, 0 judged otherwise" for name in SCHEMAS)


def output(language: str, *command: str) -> list[str]:
    """What the one example in that language prints."""
    readme = (PACKAGED / "README.md").read_text("utf-8")
    (example,) = re.findall(rf"^```{language}\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    folder = str(PACKAGED.resolve())
    done = subprocess.run([*command, folder], cwd=NODE, input=example.encode(), stdout=subprocess.PIPE, check=True)
    return sorted(done.stdout.decode().splitlines())


def test_example_in_python_runs() -> None:
    assert output("python", sys.executable, "-") == EXPECTED


def test_example_in_javascript_runs(node: str) -> None:
    assert output("js", node, "--input-type=module", "-") == EXPECTED
