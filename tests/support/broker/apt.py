"""Installs Debian packages for a demo or a test, if this user may install packages.

`python3 -P tests/support/broker/apt.py PACKAGE ...` runs before the project is installed, so it imports only the
standard library.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

# Debian starts a service as soon as its package is installed, unless policy-rc.d exits with 101.
_POLICY = "/usr/sbin/policy-rc.d"
_INSTALL = """
policy=$1
shift
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  trap 'exit 130' HUP INT TERM
  printf '#!/bin/sh\\nexit 101\\n' >"$policy"
  chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$@"
"""


def may_install() -> bool:
    """Returns whether packages can be installed without a password: as root, or with sudo."""
    return shutil.which("apt-get") is not None and _as_root() is not None


def by_hand(packages: Sequence[str]) -> str:
    """Returns the command with which a person installs the packages."""
    return " ".join(["sudo apt-get install", *packages])


def install(packages: Sequence[str], say: Callable[[str], None]) -> None:
    """Installs the packages without starting their services.

    Raises RuntimeError with the last lines of apt-get's output.
    """
    root = _as_root()
    if root is None:
        raise RuntimeError(f"no permission to install packages; run: {by_hand(packages)}")
    say(f"installing {' '.join(packages)} with apt-get")
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # In a separate process group, dpkg is not interrupted by Ctrl-C. In a separate session, sudo would not find the
        # terminal for which it has stored a password.
        process = subprocess.Popen(
            [*root, "/bin/sh", "-c", _INSTALL, "install", _POLICY, *packages],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            status = process.wait()
        except BaseException:
            say("waiting for apt-get to end: an interrupt would leave packages half installed")
            process.wait()
            raise
        if status:
            log.seek(0)
            words = " | ".join(line.strip() for line in log.readlines()[-5:])
            raise RuntimeError(f"apt-get could not install {' '.join(packages)}: {words or f'status {status}'}")


def _as_root() -> list[str] | None:
    """Returns the words before a command that make it run as root, or None if this user can't run it as root."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None:
        return None
    asked = subprocess.run([sudo, "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return [sudo, "-n"] if asked.returncode == 0 else None


def main(packages: Sequence[str]) -> int:
    """Installs the packages, or prints the command with which a person can install them. Returns the exit code."""

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    if not may_install():
        say(f"{' '.join(packages)} is missing and can't be installed from here; run: {by_hand(packages)}")
        return 1
    try:
        install(packages, say)
    except RuntimeError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
