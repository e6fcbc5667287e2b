"""Invents plausible killmails, for a demo without a fetcher.

The module has no state: the caller passes the source of random numbers and the clock.
"""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

_FIRST_KILLMAIL_ID = 130_000_000

# Maps the id of each busy solar system to the relative number of its killmails. Busy systems are trade hubs, systems on
# the routes between hubs, and systems with many fights.
_BUSY_SYSTEMS = {
    30000142: 12,  # Jita
    30000144: 6,  # Perimeter
    30002768: 6,  # Uedama
    30002813: 6,  # Tama
    30002537: 5,  # Amamake
    30005196: 4,  # Ahbazon
    30002187: 4,  # Amarr
    30004759: 3,  # 1DQ1-A
    31000005: 3,  # Thera
    30002659: 2,  # Dodixie
    30002510: 2,  # Rens
    30002053: 2,  # Hek
}
_BUSY_SHARE = 0.35
_K_SPACE = (30_000_001, 30_005_201)
_J_SPACE = (31_000_001, 31_002_604)
_J_SPACE_SHARE = 0.2

# Maps the type id of each ship or structure to the relative number of its losses.
_SHIPS = {
    670: 30,  # Capsule
    587: 8,  # Rifter
    593: 6,  # Tristan
    602: 6,  # Kestrel
    603: 6,  # Merlin
    608: 5,  # Atron
    594: 4,  # Incursus
    597: 4,  # Punisher
    16240: 6,  # Catalyst
    16242: 5,  # Thrasher
    22456: 5,  # Sabre
    32880: 6,  # Venture
    17480: 3,  # Procurer
    17478: 3,  # Retriever
    22544: 2,  # Hulk
    648: 3,  # Badger
    621: 3,  # Caracal
    638: 2,  # Raven
    641: 2,  # Megathron
    29984: 2,  # Tengu
    29990: 2,  # Loki
    23757: 1,  # Archon
    19720: 1,  # Revelation
}
_STRUCTURES = {
    35825: 4,  # Raitaru
    35832: 6,  # Astrahus
    35833: 2,  # Fortizar
    35835: 5,  # Athanor
}
# Of 123 real killmails, 17 had no victim character (structures have no character), and 41 had no alliance.
_STRUCTURE_SHARE = 1 / 7
_NO_ALLIANCE_SHARE = 1 / 3

_BIG_FIGHT_SHARE = 0.03
_MOST_ATTACKERS = 4000


def killmails(rng: random.Random, now: Callable[[], datetime]) -> Iterator[dict[str, object]]:
    """Endlessly yields the data of updates of the type `killmail`, with increasing ids.

    `now` is called once for each killmail, and returns a time with a time zone.
    """
    killmail_id = _FIRST_KILLMAIL_ID + rng.randrange(1_000_000)
    while True:
        killmail_id += 1 + int(rng.expovariate(0.5))
        is_structure = rng.random() < _STRUCTURE_SHARE
        data: dict[str, object] = {
            "killmailId": killmail_id,
            "timestamp": now().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        if not is_structure:
            data["victimId"] = rng.randint(2_112_000_000, 2_122_000_000)
        data["victimCorporationId"] = rng.randint(98_000_000, 98_800_000)
        if rng.random() >= _NO_ALLIANCE_SHARE:
            data["victimAllianceId"] = rng.randint(99_000_000, 99_013_000)
        data["systemId"] = _system(rng)
        data["shipTypeId"] = _one_of(rng, _STRUCTURES if is_structure else _SHIPS)
        data["attackerCount"] = _attackers(rng)
        yield data


def pace(rng: random.Random, rate: float) -> Iterator[float]:
    """Endlessly yields the pauses between independent events, in seconds.

    `rate` is the mean number of events per second.
    """
    if not rate > 0:
        raise ValueError(f"a rate must be above 0; got {rate}")
    while True:
        yield rng.expovariate(rate)


def _system(rng: random.Random) -> int:
    if rng.random() < _BUSY_SHARE:
        return _one_of(rng, _BUSY_SYSTEMS)
    return rng.randint(*(_J_SPACE if rng.random() < _J_SPACE_SHARE else _K_SPACE))


def _attackers(rng: random.Random) -> int:
    """Returns a random number of attackers: usually up to fifteen, and sometimes as many as in a large fleet."""
    if rng.random() < _BIG_FIGHT_SHARE:
        return min(_MOST_ATTACKERS, int(16 * rng.paretovariate(1.0)))
    return min(15, 1 + int(rng.expovariate(1 / 4)))


def _one_of(rng: random.Random, weights: dict[int, int]) -> int:
    return rng.choices(list(weights), weights=list(weights.values()))[0]
