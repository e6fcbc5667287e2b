"""Ajv, which many clients validate with, judges as the bridge does."""

from itertools import islice
from random import Random

import pytest

from tests.conformance import judges, vectors
from tests.conformance.mutations import Mutator, disagreements

SEED = 20241022
COUNT = 20_000


def test_ajv_judges_every_vector_as_the_vector_says(node: str) -> None:
    judged = [(vector, vector.judged) for vector in vectors.everything() if vector.judged is not None]
    judgements = judges.ajv(node, [case for _, case in judged])
    assert [
        vector for (vector, _), judgement in zip(judged, judgements, strict=True) if not vector.agrees(judgement)
    ] == []


@pytest.mark.slow
def test_validators_agree_on_random_mutations_of_the_vectors(node: str) -> None:
    cases = list(islice(Mutator(Random(SEED)).cases(), COUNT))
    # Where nearly all or nearly none were valid, the mutations would show little.
    assert COUNT / 10 < sum(not judgement for judgement in judges.jsonschema(cases)) < COUNT / 2
    assert list(islice(disagreements(node, cases), 5)) == []
