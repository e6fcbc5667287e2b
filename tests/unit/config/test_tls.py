"""Tests of the minimum TLS version, even where Python's default contexts have none, as in Debian's Python 3.14."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import aiormq
import pytest
from yarl import URL

from bridge.amqp.connection import _TransportFactory
from bridge.cli.common.endpoint import tls_context
from bridge.config.tls import require_tls_1_2
from bridge.demo import child
from bridge.server.tls import Tls
from tests.support.certificates import certificate

if TYPE_CHECKING:
    from pathlib import Path

CREATE = ssl.create_default_context


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """Records the default TLS contexts that are created, and removes the minimum versions of these contexts."""
    contexts: list[ssl.SSLContext] = []

    def create(purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH, **files: str | None) -> ssl.SSLContext:
        context = CREATE(purpose, **files)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        contexts.append(context)
        return context

    monkeypatch.setattr(ssl, "create_default_context", create)
    return contexts


def minimum_of(created: list[ssl.SSLContext]) -> ssl.TLSVersion:
    [context] = created
    return context.minimum_version


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.TLSv1_2),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
    ],
)
def test_minimum_is_raised_to_tls_1_2_and_never_lowered(before: ssl.TLSVersion, after: ssl.TLSVersion) -> None:
    context = CREATE()
    context.minimum_version = before
    require_tls_1_2(context)
    assert context.minimum_version is after


def test_server_context_has_the_minimum(created: list[ssl.SSLContext], tmp_path: Path) -> None:
    Tls(*certificate(tmp_path, "bridge"))
    assert minimum_of(created) is ssl.TLSVersion.TLSv1_2


async def test_context_for_a_broker_has_the_minimum(created: list[ssl.SSLContext]) -> None:
    url = URL("amqps://guest:guest@127.0.0.1:1/")
    certificates = aiormq.abc.SSLCerts(cert=None, key=None, capath=None, cafile=None, cadata=None, verify=True)
    loop = asyncio.get_running_loop()
    provider = aiormq.connection.SSLContextProvider(ssl_context=None, ssl_certs=certificates, loop=loop)
    with pytest.raises(aiormq.exceptions.AMQPConnectionError):
        await _TransportFactory(fast_channel=None).create(url, ssl_context_provider=provider)
    assert minimum_of(created) is ssl.TLSVersion.TLSv1_2


def test_context_of_tail_has_the_minimum(created: list[ssl.SSLContext]) -> None:
    tls_context("wss://localhost/updates", None)
    assert minimum_of(created) is ssl.TLSVersion.TLSv1_2


def test_context_of_the_demo_has_the_minimum(created: list[ssl.SSLContext]) -> None:
    assert not child.is_ready("127.0.0.1", 1, tls=True)
    assert minimum_of(created) is ssl.TLSVersion.TLSv1_2
