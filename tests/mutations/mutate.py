"""Mutations of values, texts and bytes."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

CONTROL = ("\x00", "\n", "\r\n", "\x1b]0;title\x07", "\x1b[2J", "\u202e", "\u2028", "\ud800")
NAMES = (
    *("", " ", "\t", "-", "_", ".", "..", "../../outside", "/etc/passwd", "a" * 5000, "é" * 300, "犬", "🐕"),
    *("=cmd|' /C calc'!A0", "@SUM(1)", "\\input{x}", "$x$", "[x](javascript:1)", "<script>alert(1)", "|"),
    *("{}", "%s", "None", "nan", "NaN", "inf", "no", "012", "1:30", "R&amp;B", "R&B", "<|endoftext|>"),
    *("ＤＯＧ", "dog", "DOG", "do\u00a0g", "cat", "Cat ", "c&#97;t"),
    *(f"x{each}y" for each in CONTROL),
)
NUMBERS = (0, 1, -1, 2, 2**31, 2**63, -(2**64), 10**400, 0.0, -0.5, 1e308, 1e-320, float("nan"), float("inf"))
VALUES = (None, True, False, [], {}, [[]], [None], {"a": 1}, {"": {}}, *NUMBERS, *NAMES)
# In JSON alone, where `as_json` writes them out: Python itself could not.
WRITTEN_OUT = {"<deep>": "[" * 100_000 + "]" * 100_000, "<digits>": "9" * 5000}


def as_json(value: Any) -> str:
    text = json.dumps(value)
    for word, written in WRITTEN_OUT.items():
        text = text.replace(f'"{word}"', written)
    return text


def mutated(rng: random.Random, value: Any, values: tuple[Any, ...] = VALUES) -> Any:
    """A copy of nested lists and dicts with one or two places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        places = list(_places(value))
        if not places:
            return rng.choice(values)
        holder, key = rng.choice(places)
        change = rng.choice(("replace", "replace", "delete", "double", "wrap", "near", "near", "order"))
        if change == "delete":
            del holder[key]
        elif change == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif change == "double":
            holder[rng.choice(NAMES)] = copy.deepcopy(holder[key])
        elif change == "wrap":
            holder[key] = rng.choice(([holder[key]], [[[holder[key]]]], {"a": holder[key]}))
        elif change == "near" and isinstance(holder[key], (int, float, str)):
            holder[key] = near(rng, holder[key])
        elif change == "order" and isinstance(holder[key], list):
            rng.shuffle(holder[key])
        else:
            holder[key] = copy.deepcopy(rng.choice(values))
    return value


def mutated_json(rng: random.Random, value: Any) -> str:
    """The JSON of a mutated value; sometimes the text is mutated, too."""
    text = as_json(mutated(rng, value, (*VALUES, *WRITTEN_OUT)))
    return mutated_text(rng, text) if rng.random() < 0.15 else text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        for key, each in list(value.items()):
            yield value, key
            yield from _places(each)
    elif isinstance(value, list):
        for index, each in enumerate(value[:40]):
            yield value, index
            yield from _places(each)


def near(rng: random.Random, value: Any) -> Any:
    """A value that a tired hand writes instead."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return value
    if isinstance(value, str):
        changes: tuple[Callable[[str], str], ...] = (
            *(str.upper, str.lower, str.title, lambda text: f" {text} ", lambda text: text.replace(" ", "_")),
            *(lambda text: text + rng.choice(CONTROL), lambda text: text.replace("a", "&#97;")),
            *(lambda text: f"{text}x", lambda text: f"{text[::-1]}x"),
        )
        return rng.choice(changes)(value)
    return rng.choice((-value, value + 1, value * 2, value * 1000, str(value), float(value), bool(value)))


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
    kind = rng.choice(("word", "word", "number", "line", "line", "bytes"))
    if kind == "bytes":
        return mutated_bytes(rng, text.encode("utf-8", "surrogatepass")).decode("latin-1")
    if kind == "line":
        lines = text.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        line, other = lines[at], f"{rng.choice(VALUES)}\n"
        lines[at : at + 1] = rng.choice(([], [line, line], [other], [line, "\n"], [line, "# a remark\n"]))
        return "".join(lines) if rng.random() < 0.8 else "".join(lines[: at + 1])
    found = list(re.finditer(r"-?\d+(\.\d+)?" if kind == "number" else r"[\w./]+", text))
    if not found:
        return f"{text}{rng.choice(VALUES)}"
    match = rng.choice(found)
    values = (*NUMBERS, *range(3, 9)) if kind == "number" else (*VALUES, near(rng, match[0]))
    return f"{text[: match.start()]}{rng.choice(values)}{text[match.end() :]}"
