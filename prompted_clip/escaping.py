"""Text from data, made safe to show: names of classes and methods, reasons, paths."""

from __future__ import annotations

import dataclasses
import unicodedata
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

# Control characters, those that format (such as the bidirectional ones), lone surrogates, ends of lines.
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # are part of words and of emoji
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # spreadsheets take the wide ones, too


def printable(value: T) -> T:
    """The text with what a terminal obeys or hides escaped: `\\x1b`, `\\n`, `\\u202e`.

    Of a list, a tuple or a dataclass, the texts in it.
    """
    made: Any = value
    if value is None or isinstance(value, (int, float)):  # most of what many runs hold
        pass
    elif isinstance(value, str):
        made = value if value.isprintable() else "".join(map(_escaped, value))
    elif isinstance(value, (list, tuple)):
        each = [printable(item) for item in value]
        made = type(value)(*each) if hasattr(value, "_fields") else type(value)(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: getattr(value, name) for name in _init_fields(type(value))}
        escaped = {name: printable(field) for name, field in fields.items()}
        if any(escaped[name] is not field for name, field in fields.items()):
            made = dataclasses.replace(value, **escaped)
    return made


def first_unsafe(text: str) -> str | None:
    """The first character of a text that `printable` escapes; None without one."""
    if text.isprintable():  # which is faster for millions of paths
        return None
    return next((sign for sign in text if _is_unsafe(sign)), None)


def csv_cell(value: Any) -> Any:
    """A cell of a CSV file; a text that a spreadsheet would calculate begins with an apostrophe."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return printable(f"'{text}" if text.startswith(FORMULA) else text)


@cache
def _init_fields(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode() if _is_unsafe(sign) else sign


def _is_unsafe(sign: str) -> bool:
    return sign not in JOINERS and unicodedata.category(sign) in UNSAFE
