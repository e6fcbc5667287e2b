"""Tests of the sources of settings, the order of these sources, and the errors."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

import pytest

from bridge.config.networks import DEFAULT_NETWORKS
from bridge.config.settings import _FIELDS, PREFIX, SETTINGS, Settings, is_set, load
from bridge.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Sources:
    """The flags, the environment, and a `.env` file in an otherwise empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dotenv = folder / ".env"

    def load(
        self, flags: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None, dotenv: str | None = None
    ) -> Settings:
        if dotenv is not None:
            self.dotenv.write_text(dotenv)
        return load(flags or {}, env or {}, self.dotenv)

    def problems(
        self, flags: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None, dotenv: str | None = None
    ) -> list[str]:
        with pytest.raises(ConfigurationError) as raised:
            self.load(flags, env, dotenv)
        return list(raised.value.problems)

    def file(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


# Defaults


def test_nothing_set_means_the_defaults(sources: Sources) -> None:
    assert sources.load() == Settings()


@pytest.mark.parametrize("name", SETTINGS)
def test_default_may_be_written_as_it_is_documented(sources: Sources, name: str) -> None:
    default = SETTINGS[name].default
    history = {"history": "stream"} if name.startswith("history_") else {}
    settings = sources.load({name: default or "", **history})
    field = _FIELDS[name]
    assert getattr(settings, field) == getattr(Settings(), field)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("amqp_url", ("amqp://guest:guest@localhost:5672/",)),
        ("exchanges", {"killmails": "killmail"}),
        ("queue", None),
        ("prefetch", 200),
        ("reject_exchange", "bridge.rejected"),
        ("max_message_bytes", 4 * 2**20),
        ("duplicate_window", 65536),
        ("host", ("localhost",)),
        ("port", 3000),
        ("path", "/updates"),
        ("allowed_networks", DEFAULT_NETWORKS),
        ("allowed_hosts", frozenset()),
        ("idle_timeout_s", 120.0),
        ("ping_interval_s", 30.0),
        ("heartbeat_interval_s", 30.0),
        ("handshake_timeout_s", 5.0),
        ("max_connections", 10_000),
        ("log_bytes", 16 * 2**20),
        ("shutdown_timeout_s", 8.0),
        ("reuse_port", False),
        ("tls_certificate", None),
        ("wait", False),
    ],
)
def test_default_is_the_specified_one(name: str, value: object) -> None:
    assert getattr(Settings(), name) == value


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 3001  # type: ignore[misc]  # this is what is tested


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_means(name: str) -> None:
    assert SETTINGS[name].meaning


# Sources


@pytest.mark.parametrize(
    ("flags", "env", "dotenv", "port"),
    [
        ({"port": "1"}, {"BRIDGE_PORT": "2"}, "BRIDGE_PORT=3", 1),
        ({}, {"BRIDGE_PORT": "2"}, "BRIDGE_PORT=3", 2),
        ({}, {}, "BRIDGE_PORT=3", 3),
        ({}, {}, "", 3000),
        ({"port": "1"}, {}, "BRIDGE_PORT=3", 1),
        ({"port": "1"}, {"BRIDGE_PORT": "2"}, None, 1),
    ],
)
def test_flags_win_over_the_environment_over_dotenv_over_the_default(
    sources: Sources, flags: dict[str, str], env: dict[str, str], dotenv: str | None, port: int
) -> None:
    assert sources.load(flags, env, dotenv).port == port


def test_each_setting_is_looked_for_by_itself(sources: Sources) -> None:
    settings = sources.load({"port": "1"}, {"BRIDGE_PATH": "/a", "BRIDGE_PORT": "2"}, "BRIDGE_QUEUE=q\nBRIDGE_PATH=/b")
    assert (settings.port, settings.path, settings.queue) == (1, "/a", "q")


def test_variables_of_others_are_left_alone(sources: Sources) -> None:
    assert sources.load(env={"PORT": "x", "BRIDGES_PORT": "x", "PATH": "x"}, dotenv="PORT=x\nAPP_PORT=x") == Settings()


def test_name_may_be_in_lower_case(sources: Sources) -> None:
    assert sources.load(env={"BRIDGE_port": "3001"}).port == 3001


def test_spaces_around_a_value_do_not_count(sources: Sources) -> None:
    assert sources.load(env={"BRIDGE_PORT": " 3001\n"}).port == 3001


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_value_of_a_setting_without_a_default_means_not_set(sources: Sources, text: str) -> None:
    assert sources.load(env={"BRIDGE_QUEUE": text, "BRIDGE_TLS_KEY": text, "BRIDGE_SCHEMAS": text}) == Settings()


def test_dotenv_may_have_quotes_comments_and_exports(sources: Sources) -> None:
    settings = sources.load(dotenv="# the port\nexport BRIDGE_PORT=\"3001\"  # here\n\nBRIDGE_PATH='/kills'\n")
    assert (settings.port, settings.path) == (3001, "/kills")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("BRIDGE_AMQP_URL amqp://u:secret@mq/", ""),
        ('BRIDGE_AMQP_URL="amqp://u:secret@mq/', "; a quote is not closed, or there is text after the closing quote"),
        ("BRIDGE_QUEUE='a' b", "; a quote is not closed, or there is text after the closing quote"),
    ],
)
def test_unclear_line_of_dotenv_is_a_problem(
    sources: Sources, line: str, hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    [problem] = sources.problems(dotenv=f"BRIDGE_PORT=1\n{line}\n")
    assert problem == f"{sources.dotenv}, line 2: it can't be read as NAME=value{hint}"
    assert caplog.text == "", "once is enough"


@pytest.mark.parametrize("name", ["bridge_port", "Bridge_Port", "BRIDGE-PORT", "bridge.port", "bridge_port_file"])
def test_name_in_another_form_is_a_problem(sources: Sources, name: str) -> None:
    meant = name.upper().replace("-", "_").replace(".", "_")
    assert sources.problems(env={name: "1"}) == [f"{name} (environment): write the name of this setting as {meant}"]


@pytest.mark.parametrize("name", ["bridge", "bridge_", "bridge_name", "my_bridge_port", "PORT"])
def test_other_variable_is_ignored(sources: Sources, name: str) -> None:
    assert sources.load(env={name: "1"}) == Settings()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("BRIDGE_AMQP_HOST", "did you mean BRIDGE_AMQP_URL?"),
        ("BRIDGE_ENV_FILE", "name a file of settings with the flag --env-file"),
        ("BRIDGE_X", "`edk-bridge serve --help` lists them all"),
        ("BRIDGE_PROT", "did you mean BRIDGE_PORT?"),
    ],
)
def test_unknown_name_has_the_hint_of_its_own_part(sources: Sources, name: str, hint: str) -> None:
    assert sources.problems(env={name: "x"}) == [f"{name} (environment): there is no such setting; {hint}"]


def test_file_variable_without_a_file_is_a_problem(sources: Sources) -> None:
    assert sources.problems(env={"BRIDGE_PORT_FILE": " "}) == [
        "BRIDGE_PORT_FILE (environment): the name of the file is empty"
    ]


@pytest.mark.parametrize("text", ['"amqp://u:secret@mq/"', "'amqp://u:secret@mq/' "])
def test_quotes_around_a_value_of_the_environment_are_a_problem(sources: Sources, text: str) -> None:
    [problem] = sources.problems(env={"BRIDGE_AMQP_URL": text})
    assert problem.endswith("its value is not valid: expected a value without quotes around it")


def test_dotenv_that_is_a_folder_is_ignored(sources: Sources) -> None:
    sources.dotenv.mkdir()
    assert sources.load() == Settings()


# Files


@pytest.mark.parametrize("content", ["3001", "3001\n", "3001\r\n"])
def test_setting_may_come_from_a_file(sources: Sources, content: str) -> None:
    assert sources.load(env={"BRIDGE_PORT_FILE": sources.file("port", content)}).port == 3001


def test_dotenv_may_name_a_file_too(sources: Sources) -> None:
    path = sources.file("url", "amqp://u:secret@mq/\n")
    assert sources.load(dotenv=f"BRIDGE_AMQP_URL_FILE={path}").amqp_url == ("amqp://u:secret@mq/",)


def test_flag_wins_over_a_file_and_a_file_over_dotenv(sources: Sources) -> None:
    env = {"BRIDGE_PORT_FILE": sources.file("port", "2")}
    assert sources.load({"port": "1"}, env).port == 1
    assert sources.load({}, env, "BRIDGE_PORT=3").port == 2


@pytest.mark.parametrize("dotenv", [False, True])
def test_setting_and_its_file_variable_together_are_a_problem(sources: Sources, *, dotenv: bool) -> None:
    variables = {"BRIDGE_PORT": "1", "BRIDGE_PORT_FILE": sources.file("port", "2")}
    text = "\n".join(f"{name}={value}" for name, value in variables.items())
    [problem] = sources.problems(dotenv=text) if dotenv else sources.problems(env=variables)
    source = str(sources.dotenv) if dotenv else "environment"
    assert problem == f"BRIDGE_PORT and BRIDGE_PORT_FILE ({source}): the setting is set twice; set it once"


def test_file_that_is_missing_is_a_problem_that_names_it(sources: Sources) -> None:
    # The path is not in a temporary folder, because the error message truncates a long path.
    [problem] = sources.problems(env={"BRIDGE_PORT_FILE": "/missing/port"})
    assert problem == "BRIDGE_PORT_FILE (environment): can't read '/missing/port': No such file or directory"


def test_file_that_is_not_text_is_a_problem(sources: Sources) -> None:
    [problem] = sources.problems(env={"BRIDGE_PORT_FILE": sources.file("port", b"\xff")})
    assert problem.startswith("BRIDGE_PORT_FILE (environment): can't read ")
    assert problem.endswith("not text in UTF-8 (byte 0); save it as UTF-8")


def test_problem_of_a_value_from_a_file_names_the_file_variable(sources: Sources) -> None:
    [problem] = sources.problems(env={"BRIDGE_PORT_FILE": sources.file("port", "x")})
    assert problem.startswith("BRIDGE_PORT (BRIDGE_PORT_FILE in the environment): 'x' is not valid")


# Problems


@pytest.mark.parametrize(
    ("flags", "env", "dotenv", "source"),
    [
        ({"port": "x"}, {}, None, "--port"),
        ({}, {"BRIDGE_PORT": "x"}, None, "environment"),
        ({}, {}, "BRIDGE_PORT=x", ".env"),
    ],
)
def test_problem_has_setting_source_value_and_expected_value(
    sources: Sources, flags: dict[str, str], env: dict[str, str], dotenv: str | None, source: str
) -> None:
    [problem] = sources.problems(flags, env, dotenv)
    shown = str(sources.dotenv) if source == ".env" else source
    assert problem == f"BRIDGE_PORT ({shown}): 'x' is not valid: expected a whole number from 0 to 65535"


def test_flag_of_two_words_is_named_as_it_is_written(sources: Sources) -> None:
    [problem] = sources.problems({"idle_timeout": "x"})
    assert "(--idle-timeout)" in problem


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("BRIDGE_PROT", "did you mean BRIDGE_PORT?"),
        ("BRIDGE_TLS_CERT", "did you mean BRIDGE_TLS_CERTIFICATE?"),
        ("BRIDGE_AMQP_PASSWORD_FILE", "did you mean BRIDGE_AMQP_URL_FILE?"),
        ("BRIDGE_AMQP_URI", "did you mean BRIDGE_AMQP_URL?"),
        ("BRIDGE_ALLOWED_ORIGIN", "did you mean BRIDGE_ALLOWED_ORIGINS?"),
        ("BRIDGE_XXXXXXXXXXXXXXXX", "`edk-bridge serve --help` lists them all"),
    ],
)
@pytest.mark.parametrize("dotenv", [False, True])
def test_unknown_name_is_a_problem_with_a_suggestion(
    sources: Sources, variable: str, hint: str, *, dotenv: bool
) -> None:
    [problem] = sources.problems(dotenv=f"{variable}=1") if dotenv else sources.problems(env={variable: "1"})
    source = str(sources.dotenv) if dotenv else "environment"
    assert problem == f"{variable} ({source}): there is no such setting; {hint}"


def test_all_problems_are_reported_together(sources: Sources) -> None:
    problems = sources.problems(
        {"path": "kills"},
        {"BRIDGE_PORT": "x", "BRIDGE_PROT": "1", "BRIDGE_QUEUE_FILE": "/nowhere"},
        "BRIDGE_LOG_LEVEL=loud\nBRIDGE_HOTS=x",
    )
    assert sorted(problem.split()[0] for problem in problems) == [
        "BRIDGE_HOTS",
        "BRIDGE_LOG_LEVEL",
        "BRIDGE_PATH",
        "BRIDGE_PORT",
        "BRIDGE_PROT",
        "BRIDGE_QUEUE_FILE",
    ]


def test_error_is_one_problem_a_line_and_ends_with_exit_code_2() -> None:
    error = ConfigurationError(["one", "two"])
    assert str(error) == "one\ntwo"
    assert error.exit_code == 2


@pytest.mark.parametrize("url", ["amqp://guest:s3cret@", "s3cret", "http://guest:s3cret@mq/", "amqp://u:s3cret@mq:x/"])
def test_value_with_a_password_is_never_shown(sources: Sources, url: str) -> None:
    for problems in (
        sources.problems({"amqp_url": url}),
        sources.problems(env={"BRIDGE_AMQP_URL": url}),
        sources.problems(env={"BRIDGE_AMQP_URL_FILE": sources.file("url", url)}),
        sources.problems(env={"BRIDGE_AMQP_URI": url}),
        sources.problems(dotenv=f"BRIDGE_AMQP_URL={url}"),
    ):
        assert problems
        assert "s3cret" not in "\n".join(problems)


OF_STREAM = ("STREAM", "MAX_AGE", "MAX_BYTES")


def test_path_of_a_page_is_a_problem(sources: Sources) -> None:
    [problem] = sources.problems({"path": "/metrics"})
    assert problem == (
        "BRIDGE_PATH: '/metrics' is reserved for the bridge's own pages; give another path, such as /updates"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        *(({"path": path}, ["BRIDGE_PATH"]) for path in ("/", "/metrics", "/page.js", "/schemas/killmail.json")),
        ({"ping_interval": "120", "idle_timeout": "120"}, ["BRIDGE_PING_INTERVAL"]),
        ({"log_bytes": "1 MiB", "max_message_bytes": "2 MiB"}, ["BRIDGE_LOG_BYTES"]),
        ({"queue": "bridge.rejected"}, ["BRIDGE_REJECT_EXCHANGE"]),
        ({"exchanges": "a=killmail,b=event", "reject_exchange": "b"}, ["BRIDGE_REJECT_EXCHANGE"]),
        ({"history": "stream", "queue": "q"}, ["BRIDGE_QUEUE"]),
        ({"history": "stream", "history_stream": "bridge.rejected"}, ["BRIDGE_HISTORY_STREAM"]),
        (
            {"history_stream": "s", "history_max_age": "3h", "history_max_bytes": "256 MiB", "history": "memory"},
            [f"BRIDGE_HISTORY_{name} (--history-{name.lower().replace('_', '-')})" for name in OF_STREAM],
        ),
        ({"path": "/openapi.json"}, ["BRIDGE_PATH"]),
        (
            {"ping_interval": "3m", "log_bytes": "64k"},
            ["BRIDGE_PING_INTERVAL", "BRIDGE_LOG_BYTES"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_problems(
    sources: Sources, flags: dict[str, str], said: list[str]
) -> None:
    assert [problem.split(":")[0] for problem in sources.problems(flags)] == said


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key"])
def test_certificate_and_key_are_set_together(sources: Sources, name: str) -> None:
    path = sources.file("tls.pem", "")
    [problem] = sources.problems({name: path})
    assert problem.startswith("BRIDGE_TLS_CERTIFICATE, BRIDGE_TLS_KEY: one is set without the other")
    settings = sources.load({"tls_certificate": path, "tls_key": path})
    assert str(settings.tls_key) == path


@pytest.mark.parametrize(
    "flags",
    [
        {"ping_interval": "119.9", "idle_timeout": "120"},
        {"log_bytes": "1 MiB", "max_message_bytes": "1 MiB"},
        {"history": "stream"},
        {"history": "memory", "queue": "q"},
        {"history": "stream", "history_max_age": "3h"},
    ],
)
def test_settings_at_the_limit_are_valid(sources: Sources, flags: dict[str, str]) -> None:
    sources.load(flags)


@pytest.mark.parametrize(("text", "interval_s"), [("0", 0), ("50ms", 0.05), ("24h", 86400)])
def test_heartbeat_interval_is_zero_or_within_its_bounds(sources: Sources, text: str, interval_s: float) -> None:
    assert sources.load({"heartbeat_interval": text}).heartbeat_interval_s == interval_s


@pytest.mark.parametrize("text", ["49ms", "25h", "0s"])
def test_other_heartbeat_interval_is_a_problem(sources: Sources, text: str) -> None:
    [problem] = sources.problems({"heartbeat_interval": text})
    assert problem.startswith("BRIDGE_HEARTBEAT_INTERVAL ")
    assert "0 or a time from 50 ms to 1 d" in problem


@pytest.mark.parametrize(
    ("log_bytes", "duplicate_window", "window"), [("16 MiB", "0", 76260), ("64 KiB", "65536", 65536)]
)
def test_history_window_is_the_capacity_of_the_log_or_of_the_duplicate_window(
    sources: Sources, log_bytes: str, duplicate_window: str, window: int
) -> None:
    flags = {"log_bytes": log_bytes, "duplicate_window": duplicate_window, "max_message_bytes": "64 KiB"}
    assert sources.load(flags).history_window == window


def test_every_variable_begins_with_the_prefix() -> None:
    assert PREFIX == "BRIDGE_"
    assert all(name == name.lower() and name.isidentifier() for name in SETTINGS)


@pytest.mark.parametrize("name", ["BRIDGE_PREFETCH", "BRIDGE_TLS_KEY", "BRIDGE_SCHEMAS_FILE"])
def test_password_of_a_url_in_another_setting_is_not_shown(sources: Sources, name: str) -> None:
    [problem] = sources.problems(env={name: "amqp://bridge:hunter2@mq/"})
    assert "hunter2" not in problem
    assert "***@mq/" in problem


@pytest.mark.parametrize("word", ["SEC/RET", "SEC@RET", "SEC#RET", "SEC?RET", "SECRET"])
def test_password_with_any_characters_is_not_shown(sources: Sources, word: str) -> None:
    for text in (f"amqp://bridge:{word}@mq/", f"bridge:{word}@mq"):
        problems = [
            *sources.problems(env={"BRIDGE_PREFETCH": text}),
            *sources.problems(env={"BRIDGE_ALLOWED_NETWORKS": text}),
            *sources.problems(dotenv=text),
        ]
        assert len(problems) >= 3
        assert "SEC" not in "".join(problems)
        assert "RET" not in "".join(problems)


def test_secret_in_the_file_variable_is_not_shown(sources: Sources) -> None:
    [problem] = sources.problems(env={"BRIDGE_AMQP_URL_FILE": "amqp://u:s3cret@mq/"})
    assert "s3cret" not in problem


def test_settings_as_text_hide_the_password() -> None:
    assert "guest:guest" not in repr(Settings())


def test_dotenv_that_is_not_utf8_is_a_problem(sources: Sources) -> None:
    sources.dotenv.write_bytes(b"BRIDGE_PORT=\xff\n")
    assert sources.problems()


def test_dotenv_line_without_a_value_is_a_problem(sources: Sources) -> None:
    sources.dotenv.write_text("BRIDGE_PORT\n")
    assert sources.problems() == [f"{sources.dotenv}, line 1: BRIDGE_PORT must be followed by = and a value"]


@pytest.fixture
def foreign_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives files a default encoding other than UTF-8, as some locales do."""

    def text_encoding(encoding: str | None, stacklevel: int = 2) -> str:
        return encoding or "cp1252"

    # pathlib calls `io.text_encoding` to choose the encoding.
    monkeypatch.setattr(io, "text_encoding", text_encoding)


@pytest.mark.usefixtures("foreign_encoding")
def test_files_are_utf8_in_any_locale(sources: Sources) -> None:
    sources.dotenv.write_text("BRIDGE_INSTANCE=Łódź\n", encoding="utf-8")
    assert sources.load().instance == "Łódź"
    assert sources.load(env={"BRIDGE_INSTANCE_FILE": sources.file("name", "Łódź\n")}).instance == "Łódź"


@pytest.mark.usefixtures("foreign_encoding")
def test_unclear_lines_of_dotenv_are_found_in_utf8(sources: Sources) -> None:
    # The encoding that replaces UTF-8 has no character for 0x81, a byte of Ł.
    sources.dotenv.write_text("# Ł\nBRIDGE_PORT=1\n", encoding="utf-8")
    assert sources.load().port == 1


def test_every_unclear_line_of_dotenv_is_named(sources: Sources) -> None:
    problems = sources.problems(dotenv="BRIDGE_PORT=1\nno value here\nBRIDGE_PATH=/a\nnor here\n")
    assert problems == [f"{sources.dotenv}, line {line}: it can't be read as NAME=value" for line in (2, 4)]


@pytest.mark.parametrize(("line", "shown"), [("BRIDGE_PORT", "BRIDGE_PORT"), ("'p@ss word'", "a name")])
def test_line_of_dotenv_without_a_value_is_named_unless_it_may_be_a_secret(
    sources: Sources, line: str, shown: str
) -> None:
    assert sources.problems(dotenv=f"BRIDGE_PATH=/a\n{line}\n") == [
        f"{sources.dotenv}, line 2: {shown} must be followed by = and a value"
    ]


def test_dotenv_that_is_not_utf8_is_named(sources: Sources) -> None:
    sources.dotenv.write_bytes(b"BRIDGE_PATH=/a\nBRIDGE_PORT=\xff\n")
    [problem] = sources.problems()
    assert problem == f"{sources.dotenv}: can't be read: it is not text in UTF-8 (byte 27); save it as UTF-8"


# Byte order marks, quotes and dollars


@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize("password", ["pa$$word", "pa$HOME", "${HOME}", "${NONE:-x}", "$", "%24{HOME}", "a#b", "a=b"])
def test_value_of_dotenv_is_unchanged(
    sources: Sources, quote: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "replaced")
    sources.dotenv.write_text(f"NONE=replaced\nBRIDGE_INSTANCE={quote}{password}{quote}\n")
    assert sources.load().instance == password


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (r"a\nb\\", r"a\nb\\"),
        (r"'a\nb'", r"a\nb"),
        (r"'a\\b\'c\"'", r"a\b'c\""),
        (r'"a\\b\"c"', r"a\b\"c".replace(r"\"", '"')),
        ("a # comment", "a"),
        ("'a # b' # comment", "a # b"),
        ("a'b\"c", "a'b\"c"),
        ("  a b  ", "a b"),
    ],
)
def test_quotes_of_dotenv_work_as_documented(sources: Sources, written: str, value: str) -> None:
    assert sources.load(dotenv=f"BRIDGE_INSTANCE={written}\n").instance == value


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_dotenv_with_a_byte_order_mark_is_read_from_its_first_line(sources: Sources, newline: str) -> None:
    sources.dotenv.write_bytes(f"BRIDGE_PORT=1{newline}BRIDGE_PATH=/a{newline}".encode("utf-8-sig"))
    settings = sources.load()
    assert (settings.port, settings.path) == (1, "/a")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_dotenv_in_utf16_is_a_problem_that_names_the_encoding(sources: Sources, encoding: str) -> None:
    sources.dotenv.write_bytes("BRIDGE_PORT=1\n".encode(encoding))
    [problem] = sources.problems()
    assert problem.startswith(f"{sources.dotenv}: can't be read: it ")
    assert "UTF-16" in problem
    assert problem.endswith("save it as UTF-8")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["BRIDGE_AMQP_URL", "BRIDGE_PORT"])
def test_byte_order_mark_of_a_file_is_named(sources: Sources, encoding: str, name: str) -> None:
    path = sources.file("secret", "amqp://u:secret@mq/".encode(encoding))
    [problem] = sources.problems(env={f"{name}_FILE": path})
    assert problem.endswith(": it begins with a byte order mark; save it as UTF-8 without one")
    assert "amqp" not in problem


def test_named_file_must_exist(sources: Sources) -> None:
    for path in (sources.dotenv, sources.folder):
        with pytest.raises(ConfigurationError, match="can't be read: "):
            load({}, {}, path, must_exist=True)
    sources.dotenv.write_text("BRIDGE_PORT=1")
    assert load({}, {}, sources.dotenv, must_exist=True).port == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('BRIDGE_INSTANCE="a\nBRIDGE_PORT="\n', 1),
        ("A=1\n\n\nBRIDGE_INSTANCE='a\nb'\n", 4),
        ("A=1\nOTHER='a\nBRIDGE_PORT=1\n'\n", 2),
    ],
)
def test_value_that_continues_in_the_next_line_is_a_problem(sources: Sources, text: str, line: int) -> None:
    [problem] = sources.problems(dotenv=text)
    assert problem == f"{sources.dotenv}, line {line}: the value continues in the next line; close its quotes"


def test_value_of_another_program_may_have_several_lines(sources: Sources) -> None:
    assert sources.load(dotenv="KEY='-----BEGIN\nEND-----'\nBRIDGE_PORT=1\n").port == 1


@pytest.mark.parametrize("second", ["BRIDGE_PORT", "BRIDGE_port"])
def test_setting_that_is_set_twice_is_a_problem(sources: Sources, second: str) -> None:
    [problem] = sources.problems(dotenv=f"BRIDGE_PORT=1\n{second}=2\n")
    names = dict.fromkeys(("BRIDGE_PORT", second))
    assert problem == f"{' and '.join(names)} ({sources.dotenv}): the setting is set twice; set it once"


def test_variables_of_kubernetes_are_skipped_in_the_environment_alone(sources: Sources) -> None:
    environment = {"BRIDGE_PORT": "tcp://10.0.0.1:3000", "BRIDGE_REUSE_PORT": "udp://10.0.0.1:3000"}
    environment |= {"BRIDGE_NORTH_SERVICE_HOST": "10.0.0.1", "BRIDGE_PORT_3000_TCP_PROTO": "tcp"}
    settings = sources.load(env=environment, dotenv="BRIDGE_PORT=1\nBRIDGE_REUSE_PORT=true\n")
    assert (settings.port, settings.reuse_port) == (1, True)
    assert sources.load({"port": "2"}, environment).port == 2
    assert len(sources.problems(dotenv="BRIDGE_PORT=tcp://10.0.0.1:3000\nBRIDGE_SERVICE_HOST=10.0.0.1\n")) == 2


def test_setting_is_set_by_the_environment_or_by_dotenv(sources: Sources) -> None:
    assert not is_set("port", {"BRIDGE_PORT": "tcp://10.0.0.1:3000"}, sources.dotenv)
    assert is_set("port", {"BRIDGE_PORT": "1"}, sources.dotenv)
    sources.dotenv.write_text("BRIDGE_PORT=1")
    assert is_set("port", {}, sources.dotenv)


@pytest.mark.parametrize("name", OF_STREAM)
def test_setting_of_a_stream_that_is_not_consumed_is_a_problem_even_with_its_default(
    sources: Sources, name: str
) -> None:
    default = SETTINGS[f"history_{name.lower()}"].default
    assert default is not None
    [problem] = sources.problems(env={f"BRIDGE_HISTORY_{name}": default})
    assert problem == (
        f"BRIDGE_HISTORY_{name} (environment): has an effect only with BRIDGE_HISTORY=stream, and "
        "BRIDGE_HISTORY is memory; set BRIDGE_HISTORY=stream, or remove this setting"
    )


def test_stream_settings_of_a_lower_source_are_no_problem_if_a_flag_disables_the_stream(sources: Sources) -> None:
    stream = {"BRIDGE_HISTORY": "stream", "BRIDGE_HISTORY_STREAM": "s"}
    assert sources.load({"history": "memory"}, stream).history == "memory"
    assert len(sources.problems({}, {"BRIDGE_HISTORY": "memory", "BRIDGE_HISTORY_STREAM": "s"})) == 1
    assert len(sources.problems({"history": "memory", "history_stream": "s"}, stream)) == 1


# Tests of secrets in the wrong place


@pytest.mark.parametrize(
    "line",
    [
        *("Sup3rSecret", "BRIDGE_Sup3rSecret", "'Sup3rSecret'", "export Sup3rSecret"),
        *("BRIDGE_AMQP_URL:amqp://user:Sup3rSecret@host/", "Sup3rSecret_FILE"),
    ],
)
def test_line_of_dotenv_without_a_value_shows_only_names_of_settings(sources: Sources, line: str) -> None:
    assert sources.problems(dotenv=f"{line}\n") == [
        f"{sources.dotenv}, line 1: a name must be followed by = and a value"
    ]


def test_line_of_dotenv_with_the_file_variable_of_a_setting_alone_is_named(sources: Sources) -> None:
    assert sources.problems(dotenv="BRIDGE_PORT_FILE\n") == [
        f"{sources.dotenv}, line 1: BRIDGE_PORT_FILE must be followed by = and a value"
    ]


@pytest.mark.parametrize(
    "variable",
    [
        *("BRIDGE_AMQP_URL:amqp://user:s3cret@host/?heartbeat", "BRIDGE_\x1b[2J", "BRIDGE_s3cret-word", "BRIDGE_\xe4"),
        *("BRIDGE_", "BRIDGE_" + "x" * 1000, "BRIDGE_PORT:s3cret_FILE"),
    ],
)
@pytest.mark.parametrize("dotenv", [False, True])
def test_unknown_variable_that_may_hold_a_secret_is_not_shown(sources: Sources, variable: str, *, dotenv: bool) -> None:
    [problem] = sources.problems(dotenv=f"{variable}=5") if dotenv else sources.problems(env={variable: "5"})
    place = f"{sources.dotenv}" if dotenv else "environment"
    assert problem.startswith(f"a name that begins with BRIDGE_ ({place}): there is no such setting; ")
    assert "s3cret" not in problem
    assert problem.isprintable()


@pytest.mark.parametrize(
    "key",
    [
        *("-----BEGIN PRIVATE KEY-----\nMC4Sup3rSecret\n-----END PRIVATE KEY-----\n", "MC4Sup3rSecret\nCg=="),
        *("-----BEGIN PRIVATE KEY-----\\nMC4Sup3rSecret", "MC4Sup3rSecret\rCg==", "MC4Sup3rSecret\u2028Cg=="),
    ],
)
@pytest.mark.parametrize(
    "name", ["TLS_KEY", "TLS_KEY_FILE", "PORT", "ALLOWED_NETWORKS", "HOST", "EXCHANGES", "SCHEMAS"]
)
def test_private_key_in_any_setting_is_not_shown(sources: Sources, name: str, key: str) -> None:
    [problem] = sources.problems(env={f"BRIDGE_{name}": key})
    assert problem.startswith(f"BRIDGE_{name} (environment): ")
    assert "its value" in problem
    assert "Sup3rSecret" not in problem


@pytest.mark.parametrize("name", ["PORT", "ALLOWED_HOSTS", "HOST", "TLS_KEY_FILE", "SCHEMAS"])
def test_value_in_an_error_is_short_and_printable(sources: Sources, name: str) -> None:
    for text in ("/x" * 2000, "/\x1b[2J"):
        [problem] = sources.problems(env={f"BRIDGE_{name}": text})
        assert problem.isprintable()
        assert len(problem) < 500


@pytest.mark.parametrize("password", ["se,cret", "se cret", "se, cret", ",se,cret,"])
@pytest.mark.parametrize("name", ["HOST", "ALLOWED_NETWORKS", "ALLOWED_HOSTS", "ALLOWED_ORIGINS", "EXCHANGES", "PORT"])
def test_password_with_a_separator_in_it_is_not_shown(sources: Sources, name: str, password: str) -> None:
    [problem] = sources.problems(env={f"BRIDGE_{name}": f"amqp://user:{password}@host"})
    assert "user" not in problem.partition("expected")[0]
    assert "se" not in problem.partition("***@host")[0].partition(": ")[2]
    assert "cret" not in problem
    assert "amqp://user" not in problem


@pytest.mark.parametrize("line", ["BRIDGE_QUEUE=# none, exclusive", "export BRIDGE_QUEUE=#", "BRIDGE_QUEUE=#a # b"])
def test_comment_in_place_of_a_value_of_dotenv_is_a_problem(sources: Sources, line: str) -> None:
    assert sources.problems(dotenv=f"BRIDGE_PORT=1\n\n{line}\n") == [
        f"{sources.dotenv}, line 3: the value begins with #; quote it, or put a space before the comment"
    ]


@pytest.mark.parametrize("line", ["BRIDGE_QUEUE='#a'", 'BRIDGE_QUEUE="#a"', "BRIDGE_QUEUE = '#a' # b"])
def test_quoted_value_of_dotenv_may_begin_with_a_number_sign(sources: Sources, line: str) -> None:
    assert sources.load(dotenv=line).queue == "#a"


@pytest.mark.parametrize(
    "line", ["BRIDGE_QUEUE= # none", "BRIDGE_QUEUE=\t# none", "OTHER=# none", "BRIDGE_QUEUE=''# none"]
)
def test_comment_after_an_empty_value_is_valid(sources: Sources, line: str) -> None:
    assert sources.load(dotenv=line).queue is None
