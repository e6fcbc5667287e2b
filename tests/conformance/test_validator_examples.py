"""The validator examples of `schemas/README.md` run without changes, and agree with every vector."""

import subprocess
import sys

from bridge.contract.catalog import PACKAGED
from tests.conformance import vectors
from tests.conformance.validators import SCHEMAS
from tests.support.documentation import code_block
from tests.support.prepare import NODE

EXPECTED = sorted(f"{name}: {len(vectors.load(name)[1])} vectors, 0 disagree" for name in SCHEMAS)


def output(example: str, *command: str) -> list[str]:
    """Runs an example for the schema files. Returns the sorted lines of the example's output."""
    command = (*command, "-", str(PACKAGED.resolve()))
    done = subprocess.run(command, cwd=NODE, input=example.encode(), stdout=subprocess.PIPE, check=True)
    return sorted(done.stdout.decode().splitlines())


def test_example_with_jsonschema_rs_agrees_with_every_vector() -> None:
    assert output(code_block("schemas/README.md", "jsonschema-rs"), sys.executable) == EXPECTED


def test_example_with_ajv_agrees_with_every_vector(node: str) -> None:
    assert output(code_block("schemas/README.md", "Ajv"), node, "--input-type=module") == EXPECTED
