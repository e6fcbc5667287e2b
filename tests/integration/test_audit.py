"""`make audit` against a service of our own: a vulnerability, or a service that fails, must not look clean."""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit import LOCKS, NOT_AUDITED, PYTHON, ROOT, VULNERABLE, locked
from tests.support.broker.ports import LOOPBACK
from tests.support.broker.session import unavailable

pytestmark = pytest.mark.slow

LIMIT_S = 60

WEAKNESS = {
    "id": "TEST-2026-1",
    "aliases": ["CVE-2026-0001"],
    "summary": "invented",
    "affected": [
        {
            "package": {"name": "orjson", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.1"}]}],
        }
    ],
}


@contextmanager
def service(knows: Callable[[str], dict[str, Any] | None]) -> Iterator[tuple[str, list[str]]]:
    """A service that speaks OSV's protocol: its URL, and the packages that it was asked about.

    `knows` gives the answer for a package's name; None is an error of the service's own.
    """
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            asked.append(name)
            answer = knows(name)
            body = json.dumps(answer or {}).encode()
            self.send_response(500 if answer is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Not on the test's output."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Answer)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/v1/query", asked
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.fixture(autouse=True)
def pip_audit() -> None:
    if not PYTHON.exists():
        unavailable("pip-audit is not installed; `make audit` installs it")


def make_audit(url: str, folder: Path) -> tuple[int, str]:
    """What `make audit` runs, asking the service at the URL: its exit code, and what it says.

    Not by make itself, which might find that .venv must be made anew, with this test running in it.
    """
    flags = f"-s osv --osv-url {url} --cache-dir {folder}"
    # As by itself, also where another make runs the tests: it would say which folder it enters and leaves.
    alone = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(
        ["make", "--dry-run", "audit", f"FLAGS={flags}"],
        cwd=ROOT,
        env=alone,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    python, *arguments = shlex.split(shown.stdout.splitlines()[-1])
    assert python == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_vulnerability_of_one_package_fails_and_every_locked_package_is_asked_for(tmp_path: Path) -> None:
    with service(lambda name: {"vulns": [WEAKNESS]} if name == "orjson" else {}) as (url, asked):
        code, text = make_audit(url, tmp_path)
    everything = locked(lock.read_text() for lock in LOCKS)
    assert sorted(asked) == sorted(everything)
    assert code == VULNERABLE
    assert f"orjson {everything['orjson']}: CVE-2026-0001, TEST-2026-1; mended in 999.1\n" in text


def test_service_that_fails_for_one_package_is_no_clean_bill(tmp_path: Path) -> None:
    with service(lambda name: None if name == "orjson" else {}) as (url, _):
        code, _ = make_audit(url, tmp_path)
    assert code == NOT_AUDITED
