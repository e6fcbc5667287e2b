"""Tests what Ctrl-C does while a command starts, and later."""

import signal
from collections.abc import Iterator

import pytest

from bridge.interrupts import exit_on_interrupt, raise_on_interrupt


@pytest.fixture(autouse=True)
def _python_default() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_ends_the_process_until_a_command_wants_the_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr("bridge.interrupts.os._exit", codes.append)
    exit_on_interrupt()
    signal.raise_signal(signal.SIGINT)
    assert codes == [130]
    raise_on_interrupt()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ignored_interrupt_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_on_interrupt()
    raise_on_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
