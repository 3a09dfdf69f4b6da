"""Mutated inputs of all kinds are taken or refused in one line. More of them: `make mutations`."""

from __future__ import annotations

import warnings

import pytest
from mutations.cases import CASES
from mutations.mutate import WRITTEN_OUT, as_json
from mutations.outcome import FINE, outcome_of

SLOW, MOST = {"settings": 6, "results": 12, "own folder": 16, "few-shot list": 16, "weights": 16}, 24  # cases


@pytest.mark.parametrize("kind", CASES)
def test_a_mutated_input_is_taken_or_refused_in_one_line(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = {seed: outcome_of(CASES[kind], seed) for seed in range(SLOW.get(kind, MOST))}
    assert {seed: found for seed, found in outcomes.items() if found.kind not in FINE} == {}
    assert "taken" in {found.kind for found in outcomes.values()}, "the check sees what is taken"


def test_what_python_cannot_hold_is_written_out():
    assert as_json([*WRITTEN_OUT, 1]) == f"[{', '.join(WRITTEN_OUT.values())}, 1]"


def code_runs(rng, folder, marker):
    marker.touch()


def writes_outside(rng, folder, marker):
    (folder.parent / "x").touch()


def stumbles(rng, folder, marker):
    raise KeyError("x")


@pytest.mark.parametrize(
    ("case", "kind"), [(code_runs, "code ran"), (writes_outside, "outside"), (stumbles, "traceback")]
)
def test_a_fault_is_found(case, kind):
    assert outcome_of(case, 0).kind == kind
