"""Writes docs/configuration.md: every configuration key, its default and its meaning, read from the code.

    python -m scripts.configuration
    python -m scripts.configuration --check

The meaning of a key is the comment beside it, or else the comment lines above it, where its default is set.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from dassl.config import defaults, get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from prompted_clip.errors import UserError
from trainers.configuration import extend_cfg

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Every configuration key with its default. Later ones win: `--dataset-config-file`, `--config-file`, flags such
as `--seed`, `KEY VALUE` at the end of the command. `train.py` prints the whole configuration at its start.

This page is written by `python -m scripts.configuration`, from the comments beside the keys in
`dassl/config/defaults.py`, in `experiments/configuration.py` and in each trainer's `settings`. "Upstream" is
Dassl.pytorch.
"""


def comments_of(source: str) -> dict[int, str]:
    """The comment of each line of code: beside it, or else the block of comment lines above it."""
    beside: dict[int, str] = {}
    above: dict[int, str] = {}
    block: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line, own_line = token.start[0], not token.line[: token.start[1]].strip()
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("#: ")
            if own_line:
                block.append(text)
            else:
                beside[line] = text
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT) and block:
            above[line] = " ".join(block)
            block = []
    return {**above, **beside}


def keys_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted keys that code sets, with their lines, as far as they are written in one place."""

    def within(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.Call):  # Config({...})
            for argument in node.args:
                yield from within(argument, prefix)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield f"{prefix}{key.value}", key.lineno
                    yield from within(value, f"{prefix}{key.value}.")

    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            key = ast.unparse(target)
            if key.startswith("cfg."):
                yield key[4:], node.lineno
            yield from within(node.value, f"{key[4:]}." if key.startswith("cfg.") else "")
        elif isinstance(node, ast.Return) and node.value is not None:
            yield from within(node.value, "")


def meanings_in(code: Any) -> dict[str, str]:
    """The meaning of each key that a function or class sets."""
    source = textwrap.dedent(inspect.getsource(code))
    comments = comments_of(source)
    return {key: comments[line] for key, line in keys_of(ast.parse(source)) if line in comments}


def meanings(section: str) -> list[tuple[str, dict[str, str]]]:
    """Places of a section's meanings, in order of precedence, each with the prefix of its keys."""
    trainer = {name.upper(): name for name in TRAINER_REGISTRY.registered_names()}.get(section)
    if trainer:
        classes = [each for each in TRAINER_REGISTRY.get(trainer).__mro__ if each is not object]
        return [(f"TRAINER.{section}.", meanings_in(each)) for each in classes]
    places = [("", meanings_in(extend_cfg)), ("", meanings_in(defaults.default_config))]
    own = getattr(defaults, f"_{section.lower()}", None)
    return [*places, (f"{section}.", meanings_in(own))] if own else places


def meaning_of(key: str, places: list[tuple[str, dict[str, str]]]) -> str:
    """The comment of `key`; nodes that share their keys, such as TRAIN_X and TRAIN_U, share their comments.

    Raises:
        ValueError: there is none.
    """
    for prefix, found in places:
        parts = key.removeprefix(prefix).split(".")
        for start in range(len(parts) if prefix else 1):
            if (name := ".".join(parts[start:])) in found:
                return found[name]
    raise UserError(f"{key} has no comment where its default is set; write what it means beside it.")


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", dict(value) if isinstance(value, CfgNode) else value


def page() -> str:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    sections: dict[str, list[tuple[str, Any]]] = {"The run": []}
    for key, value in leaves(cfg):
        first, *rest = key.split(".")
        section = "The run" if not rest or key == "TRAINER.NAME" else first
        section = f"TRAINER.{rest[0]}" if section == "TRAINER" else section
        sections.setdefault(section, []).append((key, value))
    text = HEAD
    for section, keys in sections.items():
        places = meanings(section.removeprefix("TRAINER."))
        text += f"\n## {section}\n\n| key | default | meaning |\n|---|---|---|\n"
        for key, value in keys:
            meaning = meaning_of(key, places).replace("|", "\\|")
            text += f"| `{key}` | `{value!r}` | {meaning[0].upper()}{meaning[1:].rstrip('.')}. |\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes docs/configuration.md from the code.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE} is not up to date: run python -m scripts.configuration", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
