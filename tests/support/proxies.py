"""The proxies that `docker/proxies` has a configuration for, each as it stands there, in a test's own network."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.demo.leash import leashed, signal_group
from tests.support.certificates import certificate
from tests.support.prepare import program
from tests.support.waiting import eventually

CONFIGURATIONS = Path(__file__).parents[2] / "docker/proxies"
NAME = "kills.example.org"
"""What the configurations call this host."""

PORT, BRIDGE_PORT = 443, 3000
NGINX = """
daemon off;
user root;
pid {folder}/pid;
error_log {folder}/nginx.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  include {folder}/nginx.conf;
}}
"""


def _command(kind: str, folder: Path) -> list[str]:
    if kind == "nginx":
        (folder / "main.conf").write_text(NGINX.format(folder=folder))
        return [program("nginx"), "-c", f"{folder}/main.conf"]
    if kind == "caddy":
        return [program("caddy"), "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]
    return [program("haproxy"), "-db", "-f", f"{folder}/haproxy.cfg"]


FILES = {"nginx": "nginx.conf", "caddy": "Caddyfile", "haproxy": "haproxy.cfg"}


@asynccontextmanager
async def proxied(kind: str, folder: Path, *changes: tuple[str, str]) -> AsyncIterator[None]:
    """The proxy on port 443, to be started inside an island; `changes` are made to its configuration before."""
    chain, key = certificate(folder, NAME)
    (folder / "certificate-and-key.pem").write_text(chain.read_text() + key.read_text())
    text = (CONFIGURATIONS / FILES[kind]).read_text().replace("/etc/ssl/kills", str(folder))
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    # Not every machine lets a process have so many descriptors.
    (folder / FILES[kind]).write_text(text.replace("maxconn 10000", "maxconn 400"))
    with (folder / "words.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *leashed(*_command(kind, folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        )
    try:

        async def listens() -> bool:
            if process.returncode is not None:
                raise RuntimeError(f"{kind} ended with {process.returncode}: {words(folder)}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", PORT)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(f"{kind} listens", listens)
        yield
    finally:
        assert process.stdin is not None
        signal_group(process.pid, signal.SIGTERM)
        # The leash: what is still there at its other end is killed.
        process.stdin.close()
        await process.wait()


def words(folder: Path) -> str:
    """What the proxy has said."""
    return (folder / "words.log").read_text()
