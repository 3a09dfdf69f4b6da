"""Text from data that is shown: nothing in it is obeyed by a terminal or a spreadsheet."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from prompted_clip.console import run_command
from prompted_clip.errors import UserError
from prompted_clip.escaping import csv_cell, first_unsafe, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sea lion, café, 犬, 👩‍🚀, na\xa0me", "sea lion, café, 犬, 👩‍🚀, na\xa0me"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nb\r\tc\x00\x7f\x9b", "a\\nb\\r\\tc\\x00\\x7f\\x9b"),
        ("\u202eright to left\u2066", "\\u202eright to left\\u2066"),
        ("\u2028\u2029\ufeff\u00ad", "\\u2028\\u2029\\ufeff\\xad"),
        ("\ud800", "\\ud800"),  # half of a pair, which no file takes
    ],
)
def test_what_a_terminal_obeys_or_hides_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_the_texts_in_records_are_escaped_too() -> None:
    @dataclass
    class Record:
        name: str
        rest: list

    assert printable(Record("a\n", [("b\x1b",), 1])) == Record("a\\n", [("b\\x1b",), 1])


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_a_cell_of_a_csv_file_is_no_formula(start: str) -> None:
    assert csv_cell(f"{start}cmd|' /C calc'!A0")[:2] == printable(f"'{start}")[:2]
    assert csv_cell(-1.5) == -1.5
    assert csv_cell("a-b") == "a-b"


def test_an_error_writes_one_line_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("no class \x1b]0;owned\x07\nAll is well.")

    assert run_command("report", fail) == 2
    assert capsys.readouterr().err == "report: no class \\x1b]0;owned\\x07\\nAll is well.\n"


@pytest.mark.parametrize(
    "text", ["a b", "Ünal", "a\u200db", "a\u00a0b", "犬", "a\x1bb", "a\u202eb", "a\u200bb", "\udce9"]
)
def test_the_first_unsafe_character_is_one_that_is_escaped(text):
    found = first_unsafe(text)
    assert (found is None) == (printable(text) == text)
    assert found is None or found in text
