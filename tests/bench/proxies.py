"""Runs servers with TLS, and the two proxies that this needs.

The load generator does not speak TLS. It connects to an HAProxy, which opens one TLS connection to the server for each
client. Delays include HAProxy, but processor time and memory do not. nginx can run in front of the bridge, and
terminates TLS. All figures then include nginx.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.build import installed
from tests.bench.candidates import NGINX, Candidate, Place, Server, listens, serving
from tests.bench.process import await_true, started
from tests.support.broker.ports import LOOPBACK, free_port
from tests.support.certificates import certificate

CLIENTS = 4000
"""The maximum number of clients of a proxy. Each client takes two file descriptors."""

_READY_LIMIT_S = 10.0

# Without no-ssl-reuse, HAProxy would resume its TLS sessions, and the server would have less work than with as many
# different clients. With one thread, HAProxy takes at most one core from the server.
_HAPROXY = """
global
  maxconn {clients}
  nbthread 1
defaults
  mode tcp
  timeout connect 60s
  timeout client 300s
  timeout server 300s
listen load
  bind {host}:{port} backlog 8192
  server tls {host}:{server} ssl verify none ssl-min-ver TLSv1.3 no-ssl-reuse
"""

_NGINX = """
daemon off;
pid {folder}/pid;
error_log {folder}/log;
worker_processes 1;
worker_rlimit_nofile {descriptors};
events {{ worker_connections {descriptors}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {host}:{port} ssl backlog=8192;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.3;
    location / {{
      proxy_pass http://{host}:{server};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header Host $http_host;
      proxy_read_timeout 300s;
    }}
  }}
}}
"""


@contextlib.contextmanager
def serving_tls(candidate: Candidate, place: Place, **settings: str) -> Iterator[Server]:
    """Starts the candidate with TLS. The port of the yielded server is for clients without TLS.

    Raises Failed if a proxy is not installed.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        installed("openssl")  # it makes the certificate
        chain, key = certificate(folder, "bridge")
        proxies: tuple[int, ...] = ()
        if candidate.name == NGINX:
            server = stack.enter_context(serving(candidate, place, **settings))
            pid, port = stack.enter_context(_nginx(place, folder, server.port, chain, key))
            proxies = (pid,)
        else:
            files = {"CERTIFICATE": str(chain), "KEY": str(key)}
            files |= {f"BRIDGE_TLS_{name}": path for name, path in files.items()}
            server = stack.enter_context(serving(candidate, place, **files, **settings))
            port = server.port
        yield Server(server.pid, stack.enter_context(_tls_client(place, folder, port)), proxies)


@contextlib.contextmanager
def _tls_client(place: Place, folder: Path, server: int) -> Iterator[int]:
    """Runs an HAProxy that connects to the server's port with TLS. Yields its own port, which is without TLS."""
    port = free_port()
    configuration = folder / "haproxy.cfg"
    configuration.write_text(_HAPROXY.format(host=LOOPBACK, port=port, server=server, clients=CLIENTS))
    with _proxy(place, [installed("haproxy"), "-db", "-f", configuration], port):
        yield port


@contextlib.contextmanager
def _nginx(place: Place, folder: Path, server: int, chain: Path, key: Path) -> Iterator[tuple[int, int]]:
    """Runs an nginx with TLS in front of the server's port. Yields its process id and its port."""
    port = free_port()
    configuration = folder / "nginx.conf"
    values = {"host": LOOPBACK, "port": port, "server": server, "descriptors": 2 * CLIENTS}
    configuration.write_text(_NGINX.format(folder=folder, chain=chain, key=key, **values))
    with _proxy(place, [installed("nginx"), "-c", configuration], port) as pid:
        yield pid, port


@contextlib.contextmanager
def _proxy(place: Place, command: Sequence[str | Path], port: int) -> Iterator[int]:
    """Runs a proxy. Yields its process id as soon as it listens."""
    with place.log.open("ab") as log, started(command, log) as running:
        await_true(f"{command[0]} listens", lambda: listens(port), _READY_LIMIT_S)
        yield running.pid
