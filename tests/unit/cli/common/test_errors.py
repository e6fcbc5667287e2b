"""Tests of the command line's errors, the format of its help, and the completion in a shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import click
import pytest
from click.testing import CliRunner

from bridge.cli import cli
from bridge.config.settings import SETTINGS, shown_default
from tests.support.broker.session import needs

BIN = Path(sys.executable).parent
SECRET = "correct horse/battery:staple"


def said(*arguments: str) -> tuple[int, list[str]]:
    """Returns the exit code of the command, and the lines on its standard error.

    Checks that standard output is empty.
    """
    result = CliRunner().invoke(cli, arguments, prog_name="edk-bridge")
    assert result.stdout == ""
    return result.exit_code, result.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["serve", "--prot", "1"],
            "no such option '--prot'; did you mean '--host', '--path', '--port'; see `edk-bridge serve --help`",
        ),
        (["nonsense"], "no such command 'nonsense'; see `edk-bridge --help`"),
        (
            ["rejects", "lst"],
            "no such command 'lst'; did you mean 'list'; see `edk-bridge rejects --help`",
        ),
        (
            ["tail", "--color", "blue"],
            "invalid value for '--color': 'blue' is not one of 'auto', 'always', 'never'; see `edk-bridge tail --help`",
        ),
        (
            ["completion"],
            "missing argument '{bash|zsh|fish}'. Choose from: bash, zsh, fish; see `edk-bridge completion --help`",
        ),
        (
            ["demo", "--port", f"amqp://user:{SECRET}@host"],
            "invalid value for '--port': '***@host' is not a valid integer range; give a broker's URL with "
            "--amqp-url; see `edk-bridge demo --help`",
        ),
        (
            ["serve", f"amqp://user:{SECRET}@host/"],
            "got unexpected extra argument (***@host/); give a broker's URL with --amqp-url; see "
            "`edk-bridge serve --help`",
        ),
        (
            ["serve", "here", f"amqps://user:{SECRET}@a,amqps://user:{SECRET}@b"],
            "got unexpected extra arguments (***@b); give a broker's URL with --amqp-url; see "
            "`edk-bridge serve --help`",
        ),
        (
            [f"amqp://user:{SECRET}@host/"],
            "no such command '***@host/'; give a broker's URL with --amqp-url; see `edk-bridge --help`",
        ),
        (
            ["check", f"user:{SECRET}@host"],
            "file '***@host' does not exist; see `edk-bridge check --help`",
        ),
        (
            ["publish", "."],
            "file '.' is a directory; see `edk-bridge publish --help`",
        ),
    ],
)
def test_usage_error_is_one_line_without_a_password(arguments: list[str], line: str) -> None:
    code, lines = said(*arguments)
    assert (code, lines) == (2, [f"edk-bridge: {line}"])
    assert not any(part in lines[0] for part in re.split(r"\W", SECRET))


@pytest.mark.parametrize("path", [[], ["rejects"]], ids=" ".join)
def test_command_without_arguments_shows_its_help_and_exits_with_2(path: list[str]) -> None:
    code, lines = said(*path)
    assert code == 2
    assert lines[0].startswith("Usage: edk-bridge")


def test_unhandled_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "invoke", interrupted)
    code, lines = said("demo")
    assert (code, "".join(lines)) == (130, "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "idle-timeout",
            "soon",
            "'soon' is not valid: expected a time from 100 ms to 1 d, as in 120, 500ms, 2m, 3h or 7d",
        ),
        (
            "log-bytes",
            "much",
            "'much' is not valid: expected a size from 64 KiB to 1 TiB, as in 4194304, 4 MiB or 4 MB "
            "(kB, MB, GB, TB or KiB, MiB, GiB, TiB)",
        ),
    ],
)
def test_error_of_a_duration_or_size_has_an_example(name: str, value: str, words: str) -> None:
    code, [line] = said("serve", f"--{name}", value)
    assert (code, line) == (2, f"edk-bridge: BRIDGE_{name.replace('-', '_').upper()} (--{name}): {words}")


def commands(group: click.Group, *path: str) -> list[list[str]]:
    context = click.Context(group)
    found = [[*path]]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found += commands(command, *path, name) if isinstance(command, click.Group) else [[*path, name]]
    return found


@pytest.mark.parametrize("columns", [80, 110])
@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_help_breaks_no_word_and_fits(path: list[str], columns: int) -> None:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(cli, [*path, "--help"], prog_name="edk-bridge")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= columns
    words = result.output.split()
    if path == ["serve"]:
        for name in SETTINGS:
            for word in re.split(r",\s*|\s+", shown_default(name)):
                assert any(word in each for each in words), word
            assert any(f"[BRIDGE_{name.upper()};" in each for each in words)
    assert not any(each.endswith("...") for each in words if not each.endswith(("]...", ",..."))), (
        "a summary is truncated"
    )


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (["rejects", "list"], ["--limit N", "--amqp-url URL"]),
        (["publish"], ["--amqp-url URL", "--exchange NAME", "--schemas FOLDER", "[FILE|-]..."]),
        (["check"], ["--max-message-bytes BYTES"]),
        (["serve"], ["--port PORT", "--idle-timeout DURATION", "--history [memory|stream]"]),
        (["tail"], ["[URL]", "[auto|line|json]", "Without URL, the command uses ws://localhost:3000/updates."]),
        (["rejects", "purge"], ["[ID]..."]),
        (["demo"], ["--schemas FOLDER"]),
    ],
)
def test_help_has_metavars(path: list[str], shown: list[str]) -> None:
    text = " ".join(CliRunner().invoke(cli, [*path, "--help"], prog_name="edk-bridge").output.split())
    assert [words for words in shown if words not in text] == []


def completed(shell_words: str, at: int) -> list[str]:
    """Returns the completions that a real bash offers for the word at the given index of a command line."""
    script = (
        f'eval "$(edk-bridge completion bash)"; COMP_WORDS=({shell_words}); COMP_CWORD={at}; '
        '_edk_bridge_completion edk-bridge; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    environment = {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**environment, "PATH": f"{BIN}:{environment['PATH']}"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@needs("bash")
@pytest.mark.parametrize(
    ("words", "at", "offered"),
    [
        ("edk-bridge re", 1, ["rejects"]),
        ("edk-bridge tail --type kill", 3, ["killmail"]),
        ("edk-bridge rejects list --reason not", 4, ["not-json"]),
        ("edk-bridge completion ''", 2, ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes_commands_options_and_types(words: str, at: int, offered: list[str]) -> None:
    assert completed(words, at) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_script_of_another_shell_is_valid(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="edk-bridge")
    assert result.exit_code == 0
    assert f"_EDK_BRIDGE_COMPLETE={shell}_complete" in result.stdout
    command = shutil.which(shell)
    if command is not None:
        subprocess.run([command, "-n", "/dev/stdin"], input=result.stdout, text=True, check=True)


def test_own_types_are_completed_and_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "sighting.json").write_text('{"type": "object"}')
    environment = {
        "_EDK_BRIDGE_COMPLETE": "bash_complete",
        "COMP_WORDS": "edk-bridge check --type s",
        "COMP_CWORD": "3",
    }
    for folder, offered in (
        (str(tmp_path), "plain,sighting\nplain,statistics"),
        (str(tmp_path / "none"), ""),
        ("", "plain,statistics"),
    ):
        result = CliRunner(env={**environment, "BRIDGE_SCHEMAS": folder}).invoke(cli, [], prog_name="edk-bridge")
        assert (result.exit_code, result.stdout.strip()) == (0, offered)


@pytest.mark.parametrize("arguments", [[], ["rejects"]])
def test_group_without_a_command_prints_its_help(arguments: list[str]) -> None:
    code, lines = said(*arguments)
    assert code == 2
    assert lines[0] == f"Usage: {' '.join(['edk-bridge', *arguments])} [OPTIONS] COMMAND [ARGS]..."


def test_abort_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise click.Abort

    monkeypatch.setattr(click.Group, "main", interrupted)
    assert said("purge") == (130, [])
