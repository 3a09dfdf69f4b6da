"""Mutated inputs of all kinds are taken or refused in one line. More of them: python tests/mutations/__main__.py."""

from __future__ import annotations

import warnings

import pytest
from mutations.cases import CASES
from mutations.outcome import FINE, outcome_of

SEEDS = 30


@pytest.mark.parametrize("kind", CASES)
def test_a_mutated_input_is_taken_or_refused_in_one_line(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = {seed: outcome_of(CASES[kind], seed) for seed in range(SEEDS)}
    assert {seed: found for seed, found in outcomes.items() if found.kind not in FINE} == {}
    assert {found.kind for found in outcomes.values()} == {*FINE}, "each kind has cases of both"
