"""Installing Debian packages for whoever asked for a demo or a test, on a machine where that is allowed.

Also a program, `python3 -P tests/support/broker/apt.py PACKAGE ...`, that runs before anything of the project is installed, so
it may import nothing but the standard library.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

# Debian starts a service as soon as its package is installed. invoke-rc.d asks policy-rc.d first: 101 is a no.
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
    """Whether packages can be installed without asking anybody: by root, or with sudo that needs no password."""
    return shutil.which("apt-get") is not None and _as_root() is not None


def by_hand(packages: Sequence[str]) -> str:
    """The command with which a person installs the packages."""
    return " ".join(["sudo apt-get install", *packages])


def install(packages: Sequence[str], say: Callable[[str], None]) -> None:
    """Install the packages without starting any service of theirs. Raises RuntimeError with apt's last words."""
    root = _as_root()
    if root is None:
        raise RuntimeError(f"no permission to install packages; run: {by_hand(packages)}")
    say(f"installing {' '.join(packages)} with apt-get")
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # In a process group of its own, so that Ctrl-C does not break dpkg off half-way; not in a session of its own,
        # where sudo would not find the terminal that it remembers a password for.
        process = subprocess.Popen(  # noqa: S603 - packages that this program names
            [*root, "/bin/sh", "-c", _INSTALL, "install", _POLICY, *packages],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            status = process.wait()
        except BaseException:
            say("waiting for apt-get to end: broken off, it would leave packages half installed")
            process.wait()
            raise
        if status:
            log.seek(0)
            words = " | ".join(line.strip() for line in log.readlines()[-5:])
            raise RuntimeError(f"apt-get could not install {' '.join(packages)}: {words or f'status {status}'}")


def _as_root() -> list[str] | None:
    """The words to put before a command so that it runs as root, or None where there are none."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None:
        return None
    asked = subprocess.run([sudo, "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603 - fixed words; asks for no password
    return [sudo, "-n"] if asked.returncode == 0 else None


def main(packages: Sequence[str]) -> int:
    """Install the packages, or say how a person can: the body of the program."""

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
