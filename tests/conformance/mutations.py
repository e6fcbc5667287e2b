"""Makes random mutations of the values in the conformance vectors. The two validators must agree about each mutation.

`python -m tests.conformance.mutations --count 200000 --seed 7` validates 200,000 mutations and prints the
disagreements. Mutations never contain values that only one of the parsers accepts: numbers that overflow, lone
surrogates and deep nesting.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from tests.conformance import validators, vectors
from tests.conformance.odd import CHARACTERS, DATE_TIME_PARTS, FRACTIONS, NAMES, NUMBERS, STRINGS, ZONES
from tests.conformance.validators import Case, Result

CHUNK = 50_000
"""The number of cases that one process of Node validates."""


class Number(str):
    """The JSON text of a number: 587.0 and 5.87e2 are different texts of the same number."""

    __slots__ = ()


@dataclass(slots=True)
class Members:
    """A JSON object, in which a name can occur more than once."""

    pairs: list[tuple[str, "Value"]]


Value = None | bool | str | Number | list["Value"] | Members


def parse(text: bytes) -> Value:
    """Parses JSON text to a value that can be mutated."""
    value: Value = json.loads(text, object_pairs_hook=Members, parse_int=Number, parse_float=Number)
    return value


def write(value: Value) -> str:
    """Writes a value as JSON text."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, Members):
        return "{" + ",".join(f"{json.dumps(name)}:{write(inner)}" for name, inner in value.pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(write(inner) for inner in value) + "]"
    return json.dumps(value)


@dataclass(slots=True)
class Mutator:
    """Generates cases. The same random seed gives the same cases."""

    random: Random

    def cases(self) -> Iterator[Case]:
        """Yields cases without end."""
        validated = [(vector.valid, vector.validated) for vector in vectors.everything() if vector.validated]
        # Valid values are mutated more often than invalid values, because mutations of valid values find more
        # disagreements.
        weights = [5 if valid else 1 for valid, _ in validated]
        bases = [(schema, parse(text)) for _, (schema, text) in validated]
        while True:
            schema, value = self.random.choices(bases, weights)[0]
            for _ in range(self.random.choice([1, 1, 1, 2, 3])):
                value = self.mutated(value)
            yield schema, write(value).encode()

    def mutated(self, value: Value) -> Value:
        """Returns the value with one random change."""
        chance = self.random.random()
        if isinstance(value, Members) and value.pairs and chance < 0.97:
            return Members(self._members(list(value.pairs)))
        if isinstance(value, list) and value and chance < 0.9:
            return self._items(list(value))
        if isinstance(value, Number) and chance < 0.6:
            return self._number(value)
        if isinstance(value, str) and not isinstance(value, Number) and chance < 0.85:
            return self._string(value)
        return self.anything(value)

    def anything(self, value: Value) -> Value:
        """Returns a random replacement for the value."""
        makers: list[Callable[[], Value]] = [
            lambda: None,
            lambda: self.random.random() < 0.5,
            lambda: Number(self.random.choice(NUMBERS)),
            lambda: Number(self.random.choice(NUMBERS)),
            lambda: self.random.choice(STRINGS),
            list,
            lambda: Members([]),
            lambda: [value],
            lambda: [value, value],
            lambda: Members([(self.random.choice(NAMES), value)]),
            lambda: write(value) if isinstance(value, Number) else Number(self.random.randrange(2**54)),
        ]
        return self.random.choice(makers)()

    def _members(self, members: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
        at = self.random.randrange(len(members))
        name, value = members[at]
        what = self.random.random()
        if what < 0.70:
            members[at] = (name, self.mutated(value))
        elif what < 0.78:
            del members[at]
        elif what < 0.83:
            renamed = self.random.choice([*NAMES, name.upper(), name.lower(), name + " ", name[:-1], name + "\0"])
            members[at] = (renamed, value)
        elif what < 0.88:
            members.insert(self.random.randrange(len(members) + 1), (name, self.anything(value)))
        elif what < 0.92:
            other = self.random.randrange(len(members))
            members[at], members[other] = (name, members[other][1]), (members[other][0], value)
        elif what < 0.95:
            self.random.shuffle(members)
        else:
            members.append((self.random.choice(NAMES), self.anything(value)))
        return members

    def _items(self, items: list[Value]) -> list[Value]:
        at = self.random.randrange(len(items))
        what = self.random.random()
        if what < 0.7:
            items[at] = self.mutated(items[at])
        elif what < 0.8:
            del items[at]
        elif what < 0.9:
            items.insert(at, self.anything(items[at]))
        elif write(items[at]).count(",") < 9:
            # Some lists have a limit of 100 items, so mutated lists can have just under 100 items, or more.
            items.extend([items[at]] * self.random.choice([1, 2, 98, 99, 100]))
        return items

    def _number(self, number: Number) -> Number:
        what = self.random.random()
        if what < 0.3:
            return Number(self.random.choice(NUMBERS))
        if what < 0.5 and number.lstrip("-").isdecimal():
            return Number(int(number) + self.random.choice([-1, 1, 2**31, 2**32, 2**53, -(2**53)]))
        if what < 0.7:
            return Number(2**53 + self.random.randrange(-4, 5))
        if what < 0.8:
            return Number(repr(self.random.choice([1, 1e3, 1e15, 1e16, 1e21]) * self.random.uniform(-1, 9)))
        if number.lstrip("-").isdecimal():
            return Number(number + self.random.choice([".0", ".00", ".5", "e0", "e1", "e-1", ".000000000000000001"]))
        return number

    def _string(self, text: str) -> str:
        dated = len(text) > 18 and text[4] == "-" and text[10] in "Tt "
        if dated and self.random.random() < 0.6:
            return self._date_time(text)
        if len(text) > 10_000 or not text:
            return self.random.choice(STRINGS)
        at, what = self.random.randrange(len(text)), self.random.random()
        character = self.random.choice(CHARACTERS)
        if what < 0.4:
            return text[:at] + character + text[at + 1 :]
        if what < 0.6:
            return text[:at] + character + text[at:]
        if what < 0.75:
            return text[:at] + text[at + 1 :]
        if what < 0.8:
            return text[:at] + text[at : at + 1].swapcase() + text[at + 1 :]
        if what < 0.85:
            return text + text
        if what < 0.9:
            return text + character
        return self.random.choice(STRINGS)

    def _date_time(self, text: str) -> str:
        for start, end, parts in self.random.sample(DATE_TIME_PARTS, self.random.randrange(4)):
            text = text[:start] + self.random.choice(parts) + text[end:]
        if self.random.random() < 0.5:
            text = text[:19] + self.random.choice(FRACTIONS) + self.random.choice(ZONES)
        return text


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A case for which the two validators have different results."""

    schema: str
    text: str
    jsonschema: Result
    ajv: Result


def disagreements(node: str, cases: Sequence[Case]) -> Iterator[Disagreement]:
    """Yields the cases for which the validators find different violations, or violations at different places."""
    for (schema, text), ours, theirs in zip(
        cases, validators.jsonschema(cases), validators.ajv(node, cases), strict=True
    ):
        if ours != theirs:
            yield Disagreement(schema, text.decode(), ours, theirs)


def main() -> int:
    """Validates random cases. The exit code is 1 if the validators disagree."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.mutations", description=main.__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    node = shutil.which("node")
    if node is None:
        parser.error("node is not installed")
    cases = Mutator(Random(arguments.seed)).cases()
    found = valid = total = 0
    while chunk := list(islice(cases, min(CHUNK, arguments.count - total))):
        total += len(chunk)
        valid += sum(not result for result in validators.jsonschema(chunk))
        for disagreement in disagreements(node, chunk):
            found += 1
            if found <= 20:
                sys.stdout.write(f"{disagreement}\n")
    sys.stdout.write(f"seed {arguments.seed}: {total} cases, {valid} of them valid, {found} disagreements\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
