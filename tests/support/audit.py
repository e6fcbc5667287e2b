"""`python -m tests.support.audit`: looks up known vulnerabilities of all packages in the lock files.

pip-audit asks a service about each package. pip-audit calls a package clean even if it skipped the package, or if the
service does not know the package. This module fails unless every package was looked up. Flags are passed on to
pip-audit.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = tuple(
    ROOT / f"requirements{kind}.lock" for kind in ("", "-build", "-dev", "-audit", "-libraries", "-mutants", "-plots")
)
SHIPPED, BUILD, DEV, AUDIT, LIBRARIES, MUTANTS, PLOTS = LOCKS
PYTHON = ROOT / ".venv/audit/bin/python"
"""The Python of the environment that make creates for pip-audit."""
CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 3
"""The exit codes of this module. None of them is 2, because pip-audit and make use 2 for unknown flags."""

NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """The lines to print, and the exit code."""

    code: int
    lines: tuple[str, ...]


def locked(texts: Iterable[str]) -> dict[str, str]:
    """Returns the packages in lock files that apply to this machine: their versions by name."""
    found: dict[str, str] = {}
    for text in texts:
        for line in text.splitlines():
            if not line[:1].isalnum():
                continue
            requirement = Requirement(line.rstrip("\\ "))
            if requirement.marker is None or requirement.marker.evaluate():
                [pin] = requirement.specifier
                found[canonicalize_name(requirement.name)] = str(Version(pin.version))
    return found


def judge(wanted: dict[str, str], output: str, errors: str) -> Verdict:
    """Returns the verdict on the wanted packages.

    `output` is the JSON of pip-audit, and `errors` its standard error.
    """
    try:
        entries = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        # The last line of a traceback or of a usage text is not indented.
        words = [line for line in errors.splitlines() if line[:1].strip()][-1:]
        return _not_audited("pip-audit gave no result; the last line of its errors:", words)
    looked_up: dict[str, str] = {
        canonicalize_name(entry["name"]): entry["version"] for entry in entries if "version" in entry
    }
    missing = sorted(name for name, version in wanted.items() if looked_up.get(name) != version)
    vulnerable = [
        f"{entry['name']} {entry['version']}: {_described(found)}"
        for entry in entries
        for found in entry.get("vulns", ())
    ]
    if vulnerable:
        return Verdict(VULNERABLE, (f"known vulnerabilities: {len(vulnerable)}", *vulnerable))
    if missing:
        reasons = [entry["skip_reason"] for entry in entries if "skip_reason" in entry]
        details = reasons or [f"not looked up: {name}" for name in missing]
        more = [f"and {len(details) - NAMES_SHOWN} more"] if len(details) > NAMES_SHOWN else []
        summary = f"{len(missing)} of {len(wanted)} packages were not looked up:"
        return _not_audited(summary, [*details[:NAMES_SHOWN], *more])
    return Verdict(CLEAN, (f"{len(wanted)} packages looked up, no known vulnerability",))


def _described(found: Mapping[str, Any]) -> str:
    names = ", ".join(sorted({found["id"], *found.get("aliases", ())}))
    fixed = ", ".join(found["fix_versions"])
    return f"{names}; {f'fixed in {fixed}' if fixed else 'not fixed yet'}"


def _not_audited(why: str, details: list[str]) -> Verdict:
    return Verdict(
        NOT_AUDITED,
        (
            f"NOT audited: {why}",
            *(f"  {line}" for line in details),
            "Vulnerabilities may exist. Try again on a machine that can reach the service; "
            'FLAGS="-s osv" asks OSV instead of PyPI.',
        ),
    )


def audit(flags: Sequence[str]) -> Verdict:
    """Asks the service about all packages in the lock files."""
    command = [str(PYTHON), "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner=off"]
    files = [argument for lock in LOCKS for argument in ("-r", str(lock))]
    done = subprocess.run([*command, "-f", "json", *files, *flags], capture_output=True, text=True, check=False)
    return judge(locked(lock.read_text() for lock in LOCKS), done.stdout, done.stderr)


if __name__ == "__main__":
    verdict = audit(sys.argv[1:])
    sys.stderr.write("\n".join([*verdict.lines, ""]))
    sys.exit(verdict.code)
