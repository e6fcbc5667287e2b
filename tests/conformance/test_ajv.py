"""Ajv, which many clients use, agrees with the bridge's validator."""

from itertools import islice
from random import Random

import pytest

from tests.conformance import validators, vectors
from tests.conformance.mutations import Mutator, disagreements

SEED = 20241022
COUNT = 20_000


def test_ajv_agrees_with_every_vector(node: str) -> None:
    cases = [(vector, vector.validated) for vector in vectors.everything() if vector.validated is not None]
    results = validators.ajv(node, [case for _, case in cases])
    assert [vector for (vector, _), result in zip(cases, results, strict=True) if not vector.agrees(result)] == []


@pytest.mark.slow
def test_validators_agree_on_random_mutations_of_the_vectors(node: str) -> None:
    cases = list(islice(Mutator(Random(SEED)).cases(), COUNT))
    # The test would prove little if nearly all mutations were valid, or nearly none.
    assert COUNT / 10 < sum(not result for result in validators.jsonschema(cases)) < COUNT / 2
    assert list(islice(disagreements(node, cases), 5)) == []
