"""The text that the demo prints when the bridge is ready, with addresses and commands for copying."""

import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bridge.authority import format_authority
from bridge.config.settings import Settings
from bridge.demo.feed import GAP_INTERVAL, GAP_INTERVAL_S, LOST_EVENTS, REJECT_INTERVAL


@dataclass(frozen=True, slots=True)
class Guide:
    """Formats the text for each kind of demo."""

    settings: Settings
    host: str
    """The host for clients' URLs."""
    rate: float
    """The number of killmails per second."""

    def with_broker(self, where: str, exchange: str) -> str:
        """Returns the text for a broker that other programs use too.

        `where` is a name for the broker that does not contain the password.
        """
        only = ", which only this demo uses; rejected events are only counted"
        return self._text(self._broker(where), f"published to the exchange {exchange}{only}", self._watch())

    def with_own_broker(self, url: str, origin: str, exchange: str) -> str:
        """Returns the text for a demo that has started its own broker."""
        publish = f"""
With this setting, publish and rejects use the demo's broker:

  export BRIDGE_AMQP_URL={url}
"""
        return self._text(
            self._broker(f"{url} ({origin})"), f"published to the exchange {exchange}", self._watch() + publish
        )

    def without_broker(self) -> str:
        """Returns the text for a demo with a feed instead of a broker."""
        tail = f"{command()} tail {self._updates}"
        # The id is the last member of an update's JSON.
        last_id = 'sed -n \'1s/.*"id":"\\([^"]*\\)".*/\\1/p;1q\''
        more = f"""
To see how a client resumes, take the id of an update. 10 s later, ask for all updates after it:

  id=$({tail} | {last_id}); sleep 10; {tail} --after "$id"

One of {REJECT_INTERVAL} events is invalid and is counted in bridge_rejects_total.
The log shows number 1, 2, 4, 8 and so on of them.
After every {GAP_INTERVAL} events, at most once in {GAP_INTERVAL_S:g} s, {LOST_EVENTS} events are dropped.
Clients that connect with ?after= then receive the message `gap`.
"""
        return self._text("", "without a broker", self._watch() + more)

    def _broker(self, where: str) -> str:
        return f"\n  broker     {where}"

    def _watch(self) -> str:
        return f"""
Watch them on the live page, or in another terminal:

  {command()} tail {self._updates}
"""

    @property
    def _tls(self) -> str:
        return "s" if self.settings.tls_certificate else ""

    @property
    def _updates(self) -> str:
        return f"ws{self._tls}://{format_authority(self.host, self.settings.port)}{self.settings.path}"

    def _text(self, broker: str, source: str, more: str) -> str:
        pages = f"http{self._tls}://{format_authority(self.host, self.settings.port)}"
        return f"""
  live page  {pages}/
  updates    {self._updates}
  state      {pages}/readyz and {pages}/metrics{broker}
  killmails  invented, {self.rate:g} a second, {source}
{more}
Ctrl-C stops the demo.
"""


def command() -> str:
    """Returns the shell command that runs `edk-bridge` from the working directory."""
    beside = Path(sys.executable).with_name("edk-bridge")
    started = Path(sys.argv[0]).absolute()
    found = next((path for path in (started, beside) if path.name == beside.name and path.is_file()), None)
    path = found or Path(sys.executable)
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path)) + ("" if found else " -m bridge")
