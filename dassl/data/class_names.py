"""The one check of class names, wherever they come from: each is a text, and no two are one sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from prompted_clip.console import shortened
from prompted_clip.errors import UserError
from prompted_clip.escaping import first_unsafe

# Two classes each, in ImageNet's list as published and in its halves.
PUBLISHED_TWICE, LEAST_CLASSES = ("missile", "sunglasses"), 500


def check_class_names(names: Mapping[Any, Any], source: str, way_out: str) -> None:
    """Checks that each name is a text that can be printed, and that no two make the same sentence.

    Two names do if CLIP's tokenizer makes the same tokens of them: it knows no case, underscores, entities of
    HTML or full width, and no white space beside a digit.

    Args:
        names: class → name. The class is a number, or what the data calls it; messages name it.
        source: where the names are, such as a file or a key of the configuration.
        way_out: what to do about it, a sentence.

    Raises:
        ValueError: one of them is no such name.
    """
    for label, name in names.items():
        check_name(name, f"{source}: the name of class {brief(label)}", way_out)
    _check_sentences(tuple(names.items()), source, way_out)


@lru_cache(maxsize=8)  # asked by the reader, and by the engine again
def _check_sentences(names: tuple[tuple[Any, str], ...], source: str, way_out: str) -> None:
    from prompted_clip.simple_tokenizer import default_tokenizer  # here, as it takes a second to import

    tokenizer = default_tokenizer()
    first: dict[tuple[int, ...], tuple[Any, str]] = {}
    for label, name in names:
        tokens = tuple(tokenizer.encode(name.replace("_", " ")))
        if not tokens or not {tokenizer.sot_token_id, tokenizer.eot_token_id}.isdisjoint(tokens):
            what = "a special token of CLIP's" if tokens else "empty"
            raise UserError(f"{source}: the name of class {brief(label)} is {brief(name)}, {what}. {way_out}")
        other, same = first.setdefault(tokens, (label, name))
        if other == label or (name == same in PUBLISHED_TWICE and len(names) >= LEAST_CLASSES):
            continue
        raise UserError(
            f"{source}: the classes {brief(other)} and {brief(label)} are called {brief(same)} and "
            f"{brief(name)}, which is the same sentence for CLIP: it could not tell them apart. {way_out}"
        )


def check_name(name: object, what: str, way_out: str) -> None:
    """Checks that a name is a text without characters that cannot be printed.

    Args:
        what: the key or the place of the name, for the message.
    """
    if not isinstance(name, str):
        raise UserError(
            f"{what} is {brief(name)} ({type(name).__name__}), not a text. yaml reads no, on, null and "
            '1.50 as something else: write such a name in quotes, as in "no".'
        )
    wrong = first_unsafe(name)
    if wrong is not None:
        kind = "a byte that is no UTF-8" if unicodedata.category(wrong) == "Cs" else "a control character"
        raise UserError(f"{what} is {brief(name)}, with {kind} ({wrong!a}). {way_out}")


def check_path(path: str, where: str) -> None:
    """Checks that the path of an image can be printed, and written into a file of UTF-8."""
    if first_unsafe(path) is not None:
        raise UserError(
            f"{where}: the path {brief(path, 200)} holds a control character or a byte that is no UTF-8. "
            "Rename the file or folder."
        )


def brief(value: object, most: int = 80) -> str:
    """A value for a message: as Python writes it, and shortened."""
    try:
        return shortened(repr(value), most)
    except (RecursionError, ValueError):  # an integer of too many digits
        return f"a {type(value).__name__} too deep or long to be shown"


def few(names: Sequence[str]) -> str:
    """The first eight names, for a message."""
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
