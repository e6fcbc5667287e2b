"""The compose files, as docker-compose reads them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.prepare import program

FOLDER = Path(__file__).parents[2] / "docker"
PROFILES = ("demo", "monitoring")
SECRETS = {"BROKER_PASSWORD": "secret", "ERLANG_COOKIE": "cookie"}


def compose(file: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What docker-compose says of a file, with nothing set but what is given here."""
    environment = {name: text for name, text in os.environ.items() if name not in SECRETS}
    profiles = [word for profile in PROFILES for word in ("--profile", profile)]
    command = [program("docker-compose"), *profiles, "-f", str(FOLDER / file), *arguments]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)


def read(file: str, **variables: str) -> dict[str, Any]:
    """The whole file, with everything put in that it refers to. Fails where docker-compose does not take it."""
    # The one in Python, which writes YAML, comes with what Debian's own Python reads that with.
    first = compose(file, "version", "--short").stdout.strip("v").startswith("1.")
    done = compose(file, "config", *([] if first else ["--format", "json"]), **variables)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    if first:
        convert = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
        python = ["/usr/bin/python3", "-c", convert]
        text = subprocess.run(python, input=text, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(text)
    return found
