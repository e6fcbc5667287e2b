"""Tests of the examples in the command line's README that need no broker."""

import re
from pathlib import Path

from bridge.cli.common.update_line import as_line
from tests.support.documentation import ROOT, code_block, shell
from tests.support.killmail import EXAMPLE


async def test_config_prints_what_the_readme_shows(tmp_path: Path) -> None:
    output = await shell(code_block("bridge/cli/README.md", "config"), tmp_path)
    assert output.decode() == code_block("bridge/cli/README.md", "config", 1)


async def test_check_prints_what_the_readme_shows(tmp_path: Path) -> None:
    (tmp_path / "wrong.ndjson").write_text(code_block("bridge/cli/README.md", "check", 0))
    output = await shell(code_block("bridge/cli/README.md", "check", 1), tmp_path)
    assert output.decode() == code_block("bridge/cli/README.md", "check", 2)


def test_tail_prints_the_line_that_the_readme_shows() -> None:
    message = {"type": "killmail", "data": EXAMPLE, "timestamp": 1697962000000}
    assert f"{as_line(message, 80, in_color=False, text='')}\n" == code_block("bridge/cli/README.md", "tail", 0)


def test_lines_about_a_proxy_are_those_of_the_command() -> None:
    section = (ROOT / "bridge/cli/README.md").read_text().partition("### Try a proxy")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| ", section, re.MULTILINE)
    code = "".join(path.read_text() for path in (ROOT / "bridge/cli/follow").glob("*.py"))
    phrases = [phrase for row in rows for phrase in re.findall("`(.*?)`", row)]
    assert len(phrases) == 10
    # The code has placeholders for the URL and for numbers.
    fixed = [re.split("URL|: HTTP.*|[0-9]+", phrase) for phrase in phrases]
    assert [part for parts in fixed for part in parts if part not in code] == []
