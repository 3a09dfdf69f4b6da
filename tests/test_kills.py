"""A killed command that is given again leaves what an undisturbed one leaves. More kills: `make kills`."""

from __future__ import annotations

import os

import pytest

if not hasattr(os, "fork"):  # on Windows
    pytest.skip("kills are of processes that are forked", allow_module_level=True)

from mutations.kills import Killed, difference

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize(
    ("command", "kills"),
    [("train", 2), ("draw", 2), ("prepare", 2), ("report", 2), ("html", 1), ("download", 1), ("sweep", 1)],
)
def test_after_a_kill_the_same_command_leaves_what_an_undisturbed_one_leaves(command, kills, tmp_path):
    killed = Killed(command, tmp_path)
    assert killed.operations > 10
    assert [fault for number in range(kills) if (fault := killed.fault(number))] == []


def test_a_difference_is_found():
    assert difference({"a": [1, 2.0]}, {"a": [1, 2.0]}) == ""
    assert difference({"a": 1}, {"a": 1, ".a.tmp": 1}) == ": only once: ['.a.tmp']"
    assert difference({"a": [1, 2.0]}, {"a": [1, 2.1]}) == "/a/1: '2.0' and '2.1'"
