"""`python -m tests.support.audit`: whether anything that the lock files name has a known vulnerability.

pip-audit asks for each package. By itself it calls a package clean of which the service knows nothing, or which it
could not ask about; here each must have been looked up. Flags are handed on to it.
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
LOCKS = tuple(ROOT / f"requirements{kind}.lock" for kind in ("", "-build", "-dev", "-audit", "-libraries", "-mutants"))
SHIPPED, BUILD, DEV, AUDIT, LIBRARIES, MUTANTS = LOCKS
PYTHON = ROOT / ".venv/audit/bin/python"
"""Of the environment that pip-audit has for itself, and make makes."""
CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 3
"""Exit codes. 2 is what pip-audit and make have for flags that they do not know."""

NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to tell, and the exit code."""

    code: int
    lines: tuple[str, ...]


def locked(texts: Iterable[str]) -> dict[str, str]:
    """The packages that lock files have for this machine: their versions by name."""
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
    """The verdict on what pip-audit said of the packages that are wanted: its JSON, and what it wrote beside it."""
    try:
        entries = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        # The last line of a traceback, or of a usage, is the one that begins at the margin.
        words = [line for line in errors.splitlines() if line[:1].strip()][-1:]
        return _not_audited("pip-audit gave no result; its last words:", words)
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
        told = reasons or [f"not asked about: {name}" for name in missing]
        more = [f"and {len(told) - NAMES_SHOWN} more"] if len(told) > NAMES_SHOWN else []
        about = f"the service could not tell of {len(missing)} of {len(wanted)} packages:"
        return _not_audited(about, [*told[:NAMES_SHOWN], *more])
    return Verdict(CLEAN, (f"{len(wanted)} packages looked up, no known vulnerability",))


def _described(found: Mapping[str, Any]) -> str:
    names = ", ".join(sorted({found["id"], *found.get("aliases", ())}))
    mended = ", ".join(found["fix_versions"])
    return f"{names}; {f'mended in {mended}' if mended else 'not mended yet'}"


def _not_audited(why: str, details: list[str]) -> Verdict:
    return Verdict(
        NOT_AUDITED,
        (
            f"NOT audited: {why}",
            *(f"  {line}" for line in details),
            "Nothing is known about vulnerabilities now. Try again where the service can be reached; "
            'FLAGS="-s osv" asks OSV instead of PyPI.',
        ),
    )


def audit(flags: Sequence[str]) -> Verdict:
    """Asks the service about everything in the lock files."""
    command = [str(PYTHON), "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner=off"]
    files = [argument for lock in LOCKS for argument in ("-r", str(lock))]
    done = subprocess.run([*command, "-f", "json", *files, *flags], capture_output=True, text=True, check=False)
    return judge(locked(lock.read_text() for lock in LOCKS), done.stdout, done.stderr)


if __name__ == "__main__":
    verdict = audit(sys.argv[1:])
    sys.stderr.write("\n".join([*verdict.lines, ""]))
    sys.exit(verdict.code)
