"""The demo's killmails are plausible, and the same seed gives the same killmails."""

import random
import statistics
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise
from typing import Any

import pytest

from bridge.demo.killmails import killmails, pace

_NOW = datetime(2024, 10, 22, 10, 30, 0, 123456, tzinfo=UTC)
_MEMBERS = {
    "killmailId",
    "timestamp",
    "victimId",
    "victimCorporationId",
    "victimAllianceId",
    "systemId",
    "shipTypeId",
    "attackerCount",
}
_OPTIONAL = {"victimId", "victimAllianceId"}


def _sample(count: int, seed: int = 1, now: datetime = _NOW) -> list[dict[str, Any]]:
    return list(islice(killmails(random.Random(seed), lambda: now), count))


def test_every_killmail_has_the_members_of_an_update_and_no_others() -> None:
    for data in _sample(2000):
        assert _MEMBERS - _OPTIONAL <= set(data) <= _MEMBERS


def test_ids_and_counts_are_integers_within_their_real_ranges() -> None:
    for data in _sample(2000):
        assert all(type(value) is int for name, value in data.items() if name != "timestamp")
        assert 130_000_000 <= data["killmailId"] < 2**31
        assert 30_000_001 <= data["systemId"] <= 30_005_201 or 31_000_001 <= data["systemId"] <= 31_002_604
        assert 98_000_000 <= data["victimCorporationId"] < 99_000_000
        assert 1 <= data["attackerCount"] <= 4000


def test_killmail_ids_rise() -> None:
    assert all(one["killmailId"] < other["killmailId"] for one, other in pairwise(_sample(2000)))


@pytest.mark.parametrize(
    "now", [_NOW, _NOW.astimezone(timezone(timedelta(hours=2)))], ids=["clock in UTC", "clock in another zone"]
)
def test_timestamp_is_the_time_in_utc_with_milliseconds(now: datetime) -> None:
    assert _sample(1, now=now)[0]["timestamp"] == "2024-10-22T10:30:00.123Z"


def test_timestamp_of_a_whole_second_has_milliseconds() -> None:
    assert _sample(1, now=_NOW.replace(microsecond=0))[0]["timestamp"] == "2024-10-22T10:30:00.000Z"


def test_one_third_has_no_alliance_and_one_seventh_is_a_structure_without_character() -> None:
    sample = _sample(5000)
    structures = [data for data in sample if "victimId" not in data]
    assert len(structures) / len(sample) == pytest.approx(1 / 7, abs=0.02)
    assert {data["shipTypeId"] for data in structures} == {35825, 35832, 35833, 35835}
    assert sum("victimAllianceId" not in data for data in sample) / len(sample) == pytest.approx(1 / 3, abs=0.03)


def test_number_of_attackers_is_usually_small_and_rarely_hundreds() -> None:
    counts = [data["attackerCount"] for data in _sample(5000)]
    assert statistics.median(counts) < 8
    assert sum(count <= 15 for count in counts) / len(counts) > 0.95
    assert max(counts) > 200


def test_busy_systems_are_frequent_and_both_kinds_of_space_occur() -> None:
    systems = [data["systemId"] for data in _sample(5000)]
    assert 0.05 < systems.count(30000142) / len(systems) < 0.2
    assert any(system >= 31_000_001 for system in systems)
    assert len(set(systems)) > 1000


def test_same_seed_gives_the_same_killmails_and_another_seed_gives_others() -> None:
    assert _sample(50, seed=7) == _sample(50, seed=7)
    assert _sample(50, seed=7) != _sample(50, seed=8)


@pytest.mark.parametrize("rate", [0.2, 1.0, 50.0])
def test_pauses_average_to_the_rate_and_vary(rate: float) -> None:
    pauses = list(islice(pace(random.Random(1), rate), 5000))
    assert statistics.mean(pauses) == pytest.approx(1 / rate, rel=0.1)
    assert statistics.stdev(pauses) == pytest.approx(1 / rate, rel=0.1)
    assert min(pauses) >= 0


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_rate_that_is_not_above_zero_raises_value_error(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        next(pace(random.Random(1), rate))
