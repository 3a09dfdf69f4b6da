"""Mutations of values, texts and bytes."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from typing import Any

CONTROL = ("\x00", "\n", "\r\n", "\x1b]0;title\x07", "\x1b[2J", "\u202e", "\u2028", "\ud800")
NAMES = (
    *("", " ", "\t", "-", "_", ".", "..", "../../outside", "/etc/passwd", "a" * 5000, "é" * 300, "犬", "🐕"),
    *("=cmd|' /C calc'!A0", "@SUM(1)", "\\input{x}", "$x$", "[x](javascript:1)", "<script>", "|", "{}", "%s"),
    *(
        "None",
        "nan",
        "NaN",
        "inf",
        "no",
        "012",
        "1:30",
        "R&amp;B",
        "R&B",
        "ＤＯＧ",
        "dog",
        "DOG",
        "do\u00a0g",
    ),
    *(f"x{each}y" for each in CONTROL),
)
NUMBERS = (0, 1, -1, 2, 2**31, 2**63, -(2**64), 10**400, 0.0, -0.5, 1e308, 1e-320, float("nan"), float("inf"))
VALUES = (None, True, False, [], {}, [[]], [None], {"a": 1}, {"": {}}, *NUMBERS, *NAMES)


def mutated(rng: random.Random, value: Any, values: tuple[Any, ...] = VALUES) -> Any:
    """A copy of nested lists and dicts with one or two places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        places = list(_places(value))
        if not places:
            return rng.choice(values)
        holder, key = rng.choice(places)
        change = rng.choice(("replace", "replace", "delete", "double", "wrap", "near"))
        if change == "delete":
            del holder[key]
        elif change == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif change == "double":
            holder[rng.choice(NAMES)] = copy.deepcopy(holder[key])
        elif change == "wrap":
            holder[key] = _deep(holder[key], rng.choice((1, 3, 2000)))
        elif change == "near" and isinstance(holder[key], (int, float, str)):
            holder[key] = _near(rng, holder[key])
        else:
            holder[key] = copy.deepcopy(rng.choice(values))
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key, each in list(value.items()):
            yield value, key
            yield from _places(each)
    elif isinstance(value, list):
        for index, each in enumerate(value[:40]):
            yield value, index
            yield from _places(each)


def _deep(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _near(rng: random.Random, value: Any) -> Any:
    if isinstance(value, str):
        changes: tuple[Callable[[str], str], ...] = (
            *(str.upper, str.lower, str.title, lambda text: f" {text} ", lambda text: text.replace(" ", "_")),
            *(lambda text: text + rng.choice(CONTROL), lambda text: text.replace("a", "&#97;")),
        )
        return rng.choice(changes)(value)
    return rng.choice((-value, value + 1, value * 1000, str(value), float(value), bool(value)))


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flips, cuts, repeats or inserts bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not data:
            break
        at = rng.randrange(len(data))
        change = rng.choice(("flip", "flip", "flip", "cut", "repeat", "insert", "zero", "swap"))
        length = min(len(data) - at, rng.choice((1, 4, 64, 1000)))
        if change == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif change == "cut":
            del data[at : at + length if rng.random() < 0.7 else None]
        elif change == "repeat":
            data[at:at] = data[at : at + length]
        elif change == "insert":
            data[at:at] = rng.randbytes(length)
        elif change == "zero":
            data[at : at + length] = bytes(length)
        else:
            data[at : at + length] = data[at : at + length][::-1]
    return bytes(data)


def mutated_text(rng: random.Random, text: str) -> str:
    """Replaces a word, a number or a line, or mutates the bytes."""
    kind = rng.choice(("word", "word", "number", "line", "bytes"))
    if kind == "bytes":
        return mutated_bytes(rng, text.encode()).decode("latin-1")
    if kind == "line":
        lines = text.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at : at + 1] = rng.choice(
            ([], [lines[at], lines[at]], [str(rng.choice(VALUES)), "\n"], lines[:at])
        )
        return "".join(lines)
    found = list(re.finditer(r"-?\d+(\.\d+)?" if kind == "number" else r"[\w./]+", text))
    if not found:
        return text + str(rng.choice(VALUES))
    match = rng.choice(found)
    return (
        text[: match.start()] + str(rng.choice(NUMBERS if kind == "number" else VALUES)) + text[match.end() :]
    )
