"""Tests of the parsers of all kinds of settings, and of the errors for invalid texts."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config import parsers
from bridge.config.amqp_urls import amqp_urls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHOLE = parsers.whole(1, 65535)
SIZE = parsers.size(1024, 2**40)
DURATION = parsers.duration(0.1, 86400)
DURATION_OR_ZERO = parsers.duration_or_zero(0.1, 86400)
LEVEL = parsers.one_of("info", "debug")
MAYBE = parsers.unless_off(parsers.made_name)

GOOD: list[tuple[Callable[[str], Any], str, Any]] = [
    (WHOLE, "1", 1),
    (WHOLE, "65535", 65535),
    (WHOLE, "0080", 80),
    (parsers.limit(9), "9", 9),
    (parsers.limit(9), "OFF", 0),
    (SIZE, "1024", 1024),
    (SIZE, "1024b", 1024),
    (SIZE, "4 MiB", 4 * 2**20),
    (SIZE, "4MiB", 4 * 2**20),
    (SIZE, "4m", 4 * 2**20),
    (SIZE, "4MB", 4_000_000),
    (SIZE, "2k", 2048),
    (SIZE, "2kB", 2000),
    (SIZE, "2 KiB", 2048),
    (SIZE, "1G", 2**30),
    (SIZE, "500Mi", 500 * 2**20),
    (SIZE, "1GB", 10**9),
    (SIZE, "1T", 2**40),
    (SIZE, "1.5 GiB", 3 * 2**29),
    (DURATION, "1 day", 86400.0),
    (DURATION, "3 hours", 10800.0),
    (DURATION, "0.5 min", 30.0),
    (SIZE, "1024 GiB", 2**40),
    (DURATION, "120", 120.0),
    (DURATION_OR_ZERO, "0", 0.0),
    (DURATION_OR_ZERO, "120", 120.0),
    (DURATION, "120s", 120.0),
    (DURATION, "2m", 120.0),
    (DURATION, "2 min", 120.0),
    (DURATION, "24h", 86400.0),
    (DURATION, "100ms", 0.1),
    (DURATION, "1.5 S", 1.5),
    (parsers.boolean, "true", True),
    (parsers.boolean, "YES", True),
    (parsers.boolean, "on", True),
    (parsers.boolean, "1", True),
    (parsers.boolean, "False", False),
    (parsers.boolean, "no", False),
    (parsers.boolean, "off", False),
    (parsers.boolean, "0", False),
    (LEVEL, "info", "info"),
    (LEVEL, "DEBUG", "debug"),
    (parsers.name, "killmails", "killmails"),
    (parsers.name, "kill mails \u2603", "kill mails \u2603"),
    (parsers.name, "x" * 255, "x" * 255),
    (parsers.amqp_name, "kill mails-_.:@#,/+9", "kill mails-_.:@#,/+9"),
    (parsers.amqp_name, "x" * 127, "x" * 127),
    (parsers.amqp_name, "amq.topic", "amq.topic"),
    (parsers.exchanges, "amq.topic=killmail", {"amq.topic": "killmail"}),
    *((parsers.made_name, text, text) for text in ("amq", "amqp.x", "AMQ.x", "x.amq.x")),
    *((parsers.queue_name, text, text) for text in ("killmails", "amq.gen-jeNeNqtCSJK8QdpNqqfibA")),
    (MAYBE, "bridge.rejected", "bridge.rejected"),
    (MAYBE, "off", None),
    (MAYBE, "OFF", None),
    (parsers.hosts, "localhost", ("localhost",)),
    (parsers.hosts, " 127.0.0.1, ::1,", ("127.0.0.1", "::1")),
    (parsers.hosts, "LOCALHOST., [::1], localhost, 0:0::1", ("localhost", "::1")),
    (parsers.hosts, "::ffff:127.0.0.1,FE80::1%eth0", ("127.0.0.1", "fe80::1%eth0")),
    (parsers.hosts, "0.0.0.0,::", ("0.0.0.0", "::")),
    (parsers.hosts, "My-Host,B\xfccher.example", ("my-host", "xn--bcher-kva.example")),
    (parsers.exchanges, "killmails=killmail", {"killmails": "killmail"}),
    (parsers.exchanges, " b = event , a=killmail,", {"b": "event", "a": "killmail"}),
    (parsers.exchanges, "a=b=c", {"a": "b=c"}),
    (amqp_urls, "amqp://localhost", ("amqp://localhost",)),
    (amqp_urls, "amqp://u:p$a${B}<c>@mq/", ("amqp://u:p$a${B}<c>@mq/",)),
    (amqp_urls, "amqps://u:p@mq:5671/vhost", ("amqps://u:p@mq:5671/vhost",)),
    (amqp_urls, "amqp://a/, amqps://b/", ("amqp://a/", "amqps://b/")),
    (amqp_urls, "amqp://u:p,w@a/,amqp://b/", ("amqp://u:p,w@a/", "amqp://b/")),
    (amqp_urls, "AMQP://a/, AMQPS://b/", ("AMQP://a/", "AMQPS://b/")),
    *(
        (amqp_urls, text, (text,))
        for text in (
            *(
                "amqp://[::1]:5672/",
                "amqp://my_host.example.:5672/a/b",
                "amqp://u:p w@127.1/a b",
                "amqp://b\xfccher.example/",
            ),
            *("amqp://p%C3%A4:100%25%zz@mq/%2F", "amqp://:p\xe4@mq/", f"amqp://mq/{'x' * 255}"),
        )
    ),
    (amqp_urls, "amqps://mq/?no_verify_ssl=0", ("amqps://mq/?no_verify_ssl=0",)),
    *((amqp_urls, f"amqp://mq/?{query}", (f"amqp://mq/?{query}",)) for query in ("heartbeat=0", "heartbeat=65534")),
    *((amqp_urls, f"amqp://mq/?{query}", (f"amqp://mq/?{query}",)) for query in ("timeout=5", "auth=PLAIN", "name=a")),
    (parsers.path, "/", "/"),
    (parsers.path, "/updates", "/updates"),
    (parsers.path, "/a/b-c_d.e~f", "/a/b-c_d.e~f"),
    *((parsers.path, text, text) for text in ("/a/", "/...", "/.a/b.", "/" + "x" * 1023)),
    (parsers.networks, "10.0.0.0/8", (ipaddress.ip_network("10.0.0.0/8"),)),
    (
        parsers.networks,
        "192.168.1.5, fd00::/8",
        (ipaddress.ip_network("192.168.1.5/32"), ipaddress.ip_network("fd00::/8")),
    ),
    (parsers.host_names, "", frozenset()),
    (parsers.host_names, "Kills.Example.org., my_host", frozenset({"kills.example.org", "my_host"})),
    (parsers.host_names, "B\xfccher.example, [2001:DB8::1]", frozenset({"xn--bcher-kva.example", "2001:db8::1"})),
    (parsers.origins, "", frozenset()),
    (
        parsers.origins,
        "https://B\xfccher.example:443, file://, app://., ws://10.0.0.1:3000/",
        frozenset({"https://xn--bcher-kva.example", "file://", "app://.", "http://10.0.0.1:3000"}),
    ),
    (
        parsers.origins,
        "https://Kills.example.org/, http://[::1]:8080, null",
        frozenset({"https://kills.example.org", "http://[::1]:8080", "null"}),
    ),
]

BAD: list[tuple[Callable[[str], Any], str, str]] = [
    *((WHOLE, text, "a whole number from 1 to 65535") for text in ("", "0", "65536", "-1", "+1", "1.0", "1e3", "x")),
    *((WHOLE, text, "a whole number") for text in ("\u0661", "1\n", "9" * 13, "9" * 10_000)),
    *((parsers.limit(9), text, "a whole number from 1 to 9, or off") for text in ("", "0", "10", "none")),
    *(
        (SIZE, text, "a size from 1 KiB to 1 TiB")
        for text in ("", "1023", "1025 GiB", "4 TiB", "-4k", "1.5.1 M", "MiB")
    ),
    *((SIZE, text, "as in 4194304, 4 MiB or 4 MB") for text in ("4 4", "9" * 16, "\u0664k", "1 KKB", "1e6", "0.9 KiB")),
    *((DURATION, text, "a time from 100 ms to 1 d,") for text in ("", "0", "99ms", "25h", "-1s", "2d", "nan")),
    *((DURATION_OR_ZERO, text, "0 or a time from 100 ms to 1 d,") for text in ("", "00", "0s", "99ms", "25h", "-1")),
    *((DURATION, text, "as in 120, 500ms, 2m, 3h or 7d") for text in ("inf", "1e3", ".5", "1.", "s", "1h30m")),
    *((parsers.boolean, text, "true or false") for text in ("", "2", "maybe")),
    (parsers.one_of("debug", "info", "error"), "trace", "debug, info or error"),
    *((LEVEL, text, "info or debug") for text in ("", "trace", "information")),
    *((parsers.name, text, "a name of 1 to 255 bytes") for text in ("", "x" * 256, "\u2603" * 86, "a\nb", "\x00")),
    *((parsers.amqp_name, text, "a name of 1 to 127") for text in ("", "x" * 128, "\u2603", "a\n", "a=b", "a*")),
    *((MAYBE, text, "a name, or off") for text in ("none", "False", "no", "null")),
    *((parsers.queue_name, text, "leave it empty for no queue") for text in ("off", "None", "true")),
    *((amqp_urls, f"amqp://u:p@mq/{end}", "before each URL of a list") for end in (",mq2", "v,")),
    (amqp_urls, "amqp://u:p@https://mq/", "amqp://user:password@host:port/vhost"),
    *((MAYBE, text, "a name of 1 to 127") for text in ("", "a\tb")),
    *((parsers.queue_name, text, "a name that does not begin with amq.") for text in ("amq.x", "amq.gen", "amq.topic")),
    *((MAYBE, text, "a name that does not begin with amq.") for text in ("amq.x", "amq.", "amq.fanout", "amq.gen-x")),
    *((parsers.hosts, text, "addresses or names of this machine, separated by commas") for text in ("", " ", ",")),
    *((parsers.hosts, text, "without scheme, path and network") for text in ("http://a", "a/b", "10.0.0.0/8")),
    *((parsers.hosts, text, "BRIDGE_PORT is the port") for text in ("a:3000", "[::1]:3000", "127.0.0.1:0")),
    *((parsers.hosts, text, "use 0.0.0.0 for all IPv4 addresses") for text in ("*", "a,*", "*:3000", "*.example.org")),
    *((parsers.hosts, text, "four decimal numbers") for text in ("127.1", "0", "0x7f000001", "010.0.0.1")),
    *((parsers.hosts, text, "not a host name") for text in ("a b", "a..b", ":::", "[a]", "a_%b", "localhost..")),
    *((parsers.hosts, text, ", without @ and line breaks") for text in ("x@y", "::1,x@y")),
    *(
        (parsers.hosts, text, "multicast or broadcast address")
        for text in ("224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:224.0.0.1")
    ),
    *((parsers.exchanges, text, "exchange=type") for text in ("", ",", "killmails", "=killmail", "a=", "a=b,a=c")),
    (parsers.exchanges, "x" * 128 + "=killmail", "a name of 1 to 127"),
    *((amqp_urls, text, "amqp://user:password@host") for text in ("", "localhost", "http://mq", "amqp://")),
    *((amqp_urls, text, "amqps://") for text in ("amqp://u:p@", "amqp://mq:x", "amqp://mq:70000", "amqp://mq:0")),
    *((amqp_urls, text, "amqps://") for text in ("amqp://[::1", "amqp://a,amqp://", "amqp:mq")),
    *(
        (amqp_urls, f"amqp://u:{word}@mq/", "%2F %3F %23 %40 %5C")
        for word in ("a/b", "a@b/c", "1/2", "a#b", "a?b", "a\\b")
    ),
    *(
        (amqp_urls, f"amqps://mq/?{query}", "a URL without no_verify_ssl: TLS verification can't be disabled")
        for query in (
            "no_verify_ssl=1",
            "no_verify_ssl",
            "no_verify_ssl=",
            "no_verify_ssl=1&no_verify_ssl=0",
            "no_verify_ssl=00",
        )
    ),
    *(
        (amqp_urls, text, "a URL without control characters")
        for text in ("amqp://m\tq/", "amqp://mq/\nx", "amqp://u:p\udc80@mq/", "amqp://u:p\x00@mq/")
    ),
    *((amqp_urls, text, "a URL without #") for text in ("amqp://mq/a#b", "amqp://mq/#", "amqp://mq?heartbeat=1#x")),
    *(
        (amqp_urls, text, "a host name or an address")
        for text in (
            *(
                "amqp://a,b/",
                "amqp://a,b:5672/",
                "amqp://*/",
                "amqp://a..b/",
                "amqp://my%2dhost/",
                "amqp://10.0.0.256/",
            ),
            *("amqp://u:p@a;b/", "amqp://1.2.3.4.5/"),
        )
    ),
    *(
        (amqp_urls, text, "percent escapes that are valid UTF-8; write % itself as %25")
        for text in ("amqp://u:p%ff@mq/", "amqp://%e4:p@mq/", "amqp://mq/%c3")
    ),
    *((amqp_urls, f"amqp://mq/{name}", "at most 255 bytes") for name in ("x" * 256, "%C3%A4" * 128)),
    (amqp_urls, f"amqps://mq/?capath={Path(__file__).parent}", "that `openssl rehash` has named"),
    (amqp_urls, "amqps://mq/?heartbeat=1&heartbeat=2", "once"),
    (amqp_urls, "amqps://mq/?ca_file=a&verify=0", "certfile, keyfile; ca_file, verify would be ignored"),
    (amqp_urls, "amqps://mq/?cafile=/nonexistent/a.pem", "/nonexistent/a.pem"),
    (amqp_urls, f"amqps://mq/?certfile={Path(__file__).parent}", "Is a directory"),
    (amqp_urls, f"amqps://mq/?cafile={__file__}", "cafile to be a file with certificates (PEM)"),
    (
        amqp_urls,
        "amqps://mq/?capath=/nonexistent",
        "capath to be a folder that exists and can be read (No such",
    ),
    *((amqp_urls, f"amqps://mq/?cadata={text}", "cadata to be certificates (DER)") for text in ("x", "AAAA", "")),
    *(
        (amqp_urls, f"amqp://mq/?heartbeat={text}", "heartbeat to be a whole number from 0 to 65534")
        for text in ("60s", "abc", "-5", "1.5", "99999", "65535", "", "%D9%A4", "0x10", "1e1")
    ),
    *(
        (amqp_urls, f"amqp://mq/?timeout={text}", "timeout to be a whole number from 1 to 3600")
        for text in ("abc", "0", "-1", "2.5", "")
    ),
    *((amqp_urls, f"amqps://mq/?auth={text}", "auth to be plain or external") for text in ("kerberos", "amqplain", "")),
    (amqp_urls, "amqps://mq/?auth=EXTERNAL", "amqps://, certfile and keyfile with auth=external"),
    (amqp_urls, "amqps://mq/?keyfile=/dev/null", "certfile with keyfile"),
    *(
        (amqp_urls, f"amqp://mq/?{name}=/dev/null", f"amqps:// with {name}: without TLS")
        for name in ("cafile", "certfile", "keyfile", "capath", "cadata")
    ),
    (amqp_urls, "amqp://a/,amqp://b/?heartbeat=x", "heartbeat to be"),
    *(
        (parsers.path, text, "a path such as /updates: it begins with / and has at most 1024 letters")
        for text in ("", "updates", "/a?b", "/a b", "/%20", "/a\n", "/\xe9", "/" + "x" * 1024)
    ),
    *(
        (parsers.path, text, "without empty parts and without . or .. as a part")
        for text in ("//", "//x", "/a//b", "/a//", "/.", "/..", "/./x", "/a/../b", "/a/.", "/a/..", "/a/../")
    ),
    *(
        (parsers.networks, text, "networks such as 10.0.0.0/8")
        for text in ("", ",", "10.0.0.1/8", "localhost", "10.0.0.0/33")
    ),
    (parsers.networks, "10.0.0.5/8", "(10.0.0.5/8: write 10.0.0.0/8, or 10.0.0.5 for one address)"),
    (parsers.networks, "::1,localhost", "(localhost: write 127.0.0.0/8 and ::1)"),
    (parsers.networks, "10.0.0.0/8,::/128", "(::/128: no client has such an address; 0.0.0.0/0 and ::/0 are all addr"),
    *((parsers.host_names, text, "host names or addresses") for text in ("http://a", "a:80", "a b", "*", "a..b")),
    (parsers.host_names, "a, *.example.org", "*.example.org: wildcards are not supported"),
    (parsers.origins, "https://a, https://*.example.org", "https://*.example.org: wildcards are not supported"),
    *(
        (parsers.origins, text, "origins such as")
        for text in ("kills.example.org", "https://", "https://a/b", "http://a@b")
    ),
]


def named(part: object) -> str:
    """Returns the text that represents a parameter in the name of a test.

    The text must be the same in every process that collects the tests.
    """
    if isinstance(part, FunctionType):
        return part.__qualname__.partition(".")[0]
    return repr(sorted(part) if isinstance(part, frozenset) else part)[:40]


@pytest.mark.parametrize(("parse", "text", "value"), GOOD, ids=named)
def test_text_is_parsed(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(("parse", "text", "expected"), BAD, ids=named)
def test_error_has_the_expected_value(parse: Callable[[str], Any], text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse(text)


def test_exchanges_keep_their_order_and_can_not_be_changed() -> None:
    exchanges = parsers.exchanges("b=event,a=killmail")
    assert list(exchanges) == ["b", "a"]
    with pytest.raises(TypeError):
        exchanges["c"] = "event"  # type: ignore[index]  # this is what is tested


def test_folder_must_exist(tmp_path: Path) -> None:
    assert parsers.folder(str(tmp_path)) == tmp_path
    (tmp_path / "file").touch()
    for name, reason in (("file", "Not a directory"), ("missing", "No such file or directory")):
        with pytest.raises(ValueError, match=f"a folder that exists and can be read \\({reason}\\)"):
            parsers.folder(str(tmp_path / name))


def test_folder_must_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The error is simulated, because root can read every folder.
    monkeypatch.setattr(os, "scandir", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(ValueError, match="can be read \\(Permission denied\\)"):
        parsers.folder(str(tmp_path))


def test_file_must_be_readable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert parsers.file(str(tmp_path / "file")) == tmp_path / "file"
    with pytest.raises(ValueError, match=r"a file that can be read \(No such file or directory\)"):
        parsers.file(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"a file that can be read \(Is a directory\)"):
        parsers.file(str(tmp_path))


PURE = [WHOLE, SIZE, DURATION, LEVEL, MAYBE, parsers.boolean, parsers.name, parsers.hosts, parsers.exchanges]
PURE += [amqp_urls, parsers.path, parsers.networks, parsers.host_names, parsers.origins]


@given(
    text=st.text(max_size=30) | st.sampled_from([text for _, text, *_ in GOOD]).flatmap(st.permutations).map("".join)
)
def test_any_text_has_a_value_or_an_error(text: str) -> None:
    for parse in PURE:
        try:
            parse(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - an error is one of two right answers
