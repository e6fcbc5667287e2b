"""`make audit` with a fake service: the audit fails if a package has a vulnerability or the service fails."""

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

VULNERABILITY = {
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
def service(answer_for: Callable[[str], dict[str, Any] | None]) -> Iterator[tuple[str, list[str]]]:
    """Runs a service with OSV's protocol. Yields the service's URL, and the requested packages.

    `answer_for` returns the service's answer for the name of a package, or None for an error.
    """
    requested: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            requested.append(name)
            answer = answer_for(name)
            body = json.dumps(answer or {}).encode()
            self.send_response(500 if answer is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Keeps the log out of the test's output."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Answer)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/v1/query", requested
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.fixture(autouse=True)
def pip_audit() -> None:
    if not PYTHON.exists():
        unavailable("pip-audit is not installed; `make audit` installs it")


def make_audit(url: str, folder: Path) -> tuple[int, str]:
    """Runs the command of `make audit` with the service at `url`. Returns the exit code and the error output.

    The test runs the command without make, because make might rebuild .venv, in which this test runs.
    """
    flags = f"-s osv --osv-url {url} --cache-dir {folder}"
    # If `make` runs the tests, its variables would cause the inner `make` to print the folders that it enters.
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(
        ["make", "--dry-run", "audit", f"FLAGS={flags}"],
        cwd=ROOT,
        env=environment,
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


def test_audit_requests_each_locked_package_and_fails_for_a_vulnerability(tmp_path: Path) -> None:
    with service(lambda name: {"vulns": [VULNERABILITY]} if name == "orjson" else {}) as (url, requested):
        code, text = make_audit(url, tmp_path)
    everything = locked(lock.read_text() for lock in LOCKS)
    assert sorted(requested) == sorted(everything)
    assert code == VULNERABLE
    assert f"orjson {everything['orjson']}: CVE-2026-0001, TEST-2026-1; fixed in 999.1\n" in text


def test_audit_fails_if_the_service_fails_for_one_package(tmp_path: Path) -> None:
    with service(lambda name: None if name == "orjson" else {}) as (url, _):
        code, _ = make_audit(url, tmp_path)
    assert code == NOT_AUDITED
