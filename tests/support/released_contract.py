"""`python -m tests.support.released_contract`: fails if the schema files break what the last release has promised.

The command compares the schema files with those of the last release: the tag `vX.Y.Z` with the highest version up to
that of the project. It prints each change that breaks publishers or clients, and exits with 1. If there is nothing to
compare with, the command says so, and exits with 0: without a release, without git, in an exported tree, and in a
shallow clone without tags.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import orjson

from tests.support.schema_changes import Files, compare

ROOT = Path(__file__).parents[2]

ACCEPTED: Mapping[str, str] = {}
"""Maps each accepted change, as the command prints it, to the reason why it breaks nobody.

A new release makes the reason obsolete: the command fails if an accepted change no longer exists.
"""

Version = tuple[int, ...]


class NotComparable(Exception):
    """There is no release to compare with. The error's text says why."""


def last_release(tags: list[str], current: Version) -> str | None:
    """Returns the tag of the newest release up to the current version, or None. Other tags are ignored."""
    found = {tag: version for tag in tags if (version := _version(tag.removeprefix("v"))) is not None and tag[0] == "v"}
    return max((tag for tag, version in found.items() if version <= current), key=found.__getitem__, default=None)


def _version(text: str) -> Version | None:
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+\.\d+\.\d+", text) else None


def report(old: Files, new: Files, accepted: Mapping[str, str]) -> list[str]:
    """Returns the lines about the changes that break something, and about accepted changes that no longer exist."""
    found = [str(change) for change in compare(old, new)]
    lines = [line for line in found if line not in accepted]
    return lines + [f"this change is accepted, but does not exist: {line}" for line in accepted if line not in found]


def released(root: Path) -> tuple[str, Files]:
    """Returns the tag of the last release, and its schema files. Raises NotComparable."""
    if (top := Path(_git(root, "rev-parse", "--show-toplevel").strip())).resolve() != root.resolve():
        raise NotComparable(f"{root} is not a clone: it is a part of {top}")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    current = _version(project["version"])
    assert current is not None, project["version"]
    tag = last_release(_git(root, "tag", "--list").split(), current)
    if tag is None:
        is_shallow = _git(root, "rev-parse", "--is-shallow-repository").strip() == "true"
        hint = " in this shallow clone (`git fetch --tags` fetches them)" if is_shallow else ""
        raise NotComparable(f"there is no release tag{hint}")
    names = _git(root, "ls-tree", "--name-only", tag, "schemas/").split()
    return tag, {
        PurePosixPath(name).stem: orjson.loads(_git(root, "show", f"{tag}:{name}"))
        for name in names
        if name.endswith(".json")
    }


def present(root: Path) -> Files:
    """Returns the schema files of the work tree."""
    return {file.stem: orjson.loads(file.read_bytes()) for file in sorted((root / "schemas").glob("*.json"))}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotComparable(f"git can't be run: {error.strerror}") from error
    if done.returncode != 0:
        raise NotComparable((done.stderr.splitlines() or [f"git ended with {done.returncode}"])[0])
    return done.stdout


def main(root: Path = ROOT, accepted: Mapping[str, str] = ACCEPTED) -> int:
    """Prints the result, and returns the exit code."""
    try:
        tag, old = released(root)
    except NotComparable as error:
        sys.stdout.write(f"schemas: not compared with a release: {error}\n")
        return 0
    lines = report(old, present(root), accepted)
    sys.stdout.writelines(f"schemas: since {tag}: {line}\n" for line in lines)
    if not lines:
        sys.stdout.write(f"schemas: no change since {tag} breaks publishers or clients\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
