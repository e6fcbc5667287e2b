"""Tests that packages are installed only if no password is needed, and that their services do not start."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.broker import apt


class _Root:
    """A machine on which the test seems to be root, with a fake apt-get that only records its arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._folder = folder
        self.policy = folder / "policy-rc.d"
        self.calls = folder / "calls"
        monkeypatch.setattr(apt, "_POLICY", str(self.policy))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        self.command("apt-get", f'echo "$* $(sh {self.policy}; echo $?)" >>{self.calls}')

    def command(self, name: str, script: str) -> None:
        path = self._folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Root:
    return _Root(monkeypatch, tmp_path)


def test_services_do_not_start_when_packages_are_installed(root: _Root) -> None:
    said: list[str] = []
    apt.install(["one", "two"], said.append)
    assert root.calls.read_text().splitlines() == [
        "update -qq 101",
        "install -y -qq --no-install-recommends one two 101",
    ]
    assert not root.policy.exists()
    assert said == ["installing one two with apt-get"]


def test_an_existing_policy_is_not_changed(root: _Root) -> None:
    root.policy.write_text("exit 5\n")
    apt.install(["one"], print)
    assert root.policy.read_text() == "exit 5\n"
    assert root.calls.read_text().endswith(" 5\n")


def test_a_failed_installation_raises_the_error_of_apt_and_leaves_no_policy(root: _Root) -> None:
    root.command("apt-get", '[ "$1" = update ] || { echo "E: Unable to locate package $5"; exit 100; }')
    with pytest.raises(RuntimeError, match="E: Unable to locate package one"):
        apt.install(["one"], print)
    assert not root.policy.exists()


def test_an_interruption_waits_for_apt_to_end(root: _Root, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    wait, waits = subprocess.Popen.wait, 0

    def interrupted(process: subprocess.Popen[bytes]) -> int:
        nonlocal waits
        waits += 1
        if waits == 1:
            raise KeyboardInterrupt
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apt.install(["one"], said.append)
    assert "install" in root.calls.read_text()
    assert said[-1].startswith("waiting for apt-get to end")


@pytest.mark.parametrize(("asks", "allowed"), [(False, True), (True, False)], ids=["free sudo", "sudo that asks"])
def test_without_root_sudo_is_used_if_it_needs_no_password(
    root: _Root, monkeypatch: pytest.MonkeyPatch, asks: bool, allowed: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    root.command("sudo", "exit 1" if asks else '[ "$1" = -n ] && shift; exec "$@"')
    assert apt.may_install() is allowed
    assert apt.main(["one"]) == (0 if allowed else 1)
    assert root.calls.exists() is allowed


def test_without_root_and_sudo_nothing_is_installed(
    root: _Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not apt.may_install()
    with pytest.raises(RuntimeError, match="sudo apt-get install one"):
        apt.install(["one"], print)
    assert apt.main(["one"]) == 1
    assert "sudo apt-get install one" in capsys.readouterr().err
    assert not root.calls.exists()


def test_the_program_prints_the_error(root: _Root, capsys: pytest.CaptureFixture[str]) -> None:
    root.command("apt-get", "echo broken; exit 100")
    assert apt.main(["one"]) == 1
    assert "broken" in capsys.readouterr().err
