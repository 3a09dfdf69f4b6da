"""yacs' node with `_BASE_` inheritance, and with errors that name key, file and the nearest known key."""

from __future__ import annotations

import difflib
import os
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yacs.config import _VALID_TYPES, CfgNode

from dassl.config.bounded_yaml import load_yaml
from prompted_clip.console import shortened
from prompted_clip.errors import MissingFileError, UserError

BASE_KEY = "_BASE_"
MOST_FILES = 200  # that one configuration is read from; a file counts each time that it is somebody's base


class Config(CfgNode):
    """A yacs node. What is merged into it must be known, or below a node with `new_allowed`.

    Every merge is all or nothing: after an error the config is as it was. Children may be plain yacs nodes;
    of a child with `verbatim`, texts stay as they are written, also those that look like a number.
    """

    def merge_from_file(self, cfg_filename: str) -> None:
        """Merges a yaml file, after the file or files that it names as `_BASE_` (paths relative to itself).

        Raises:
            FileNotFoundError: no such file or base.
            ValueError: broken yaml, circular bases, unknown key, wrong type.
        """
        self._merge(_read_with_bases(cfg_filename))

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merges `[key, value, key, value, ...]`, as it comes from a command line.

        Raises:
            ValueError: unknown key, wrong type, key without value.
        """
        flag = next((key for key in cfg_list[0::2] if str(key).startswith("--")), None)
        if flag is not None:
            raise UserError(
                f"command line: {flag} stands among the KEY VALUE options; flags go before all of them"
            )
        if len(cfg_list) % 2:
            raise UserError(
                f"command line: {cfg_list[-1]!r} stands alone; config keys are given as KEY VALUE"
            )
        layers = []
        for key, value in zip(cfg_list[0::2], cfg_list[1::2], strict=True):
            for part in reversed(str(key).split(".")):
                value = {part: value}
            layers.append(("command line", value))
        self._merge(layers)

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Merges another config. Raises ValueError for an unknown key or a wrong type."""
        self._merge([("other config", cfg_other)])

    def _merge(self, layers: list[tuple[str, Mapping[str, Any]]]) -> None:
        for target in (self.clone(), self):  # the copy takes the errors
            for source, values in layers:
                try:
                    _merge_into(target, values, target, (), source)
                except RecursionError:
                    raise UserError(f"{source}: sections within sections, too deep to be meant") from None


def _merge_into(
    node: CfgNode, values: Mapping[str, Any], root: CfgNode, path: tuple[str, ...], source: str
) -> None:
    for key, value in values.items():
        here = (*path, str(key))
        if key not in node:
            if not node.is_new_allowed():
                raise UserError(_unknown_key(root, here, value, source))
            if isinstance(value, Mapping):
                node[key] = Config(new_allowed=True)
                _merge_into(node[key], value, root, here, source)
            else:
                value = value if getattr(node, "verbatim", False) else _decode(value)
                node[key] = _checked_type(value, here, source)
        elif isinstance(node[key], CfgNode):
            value = _decode(value)
            if isinstance(value, Mapping):
                _merge_into(node[key], value, root, here, source)
            elif value is not None:  # a section without keys changes nothing
                raise UserError(
                    f"{'.'.join(here)} ({source}) is a section of keys, not a value: {_brief(value)}"
                )
        else:
            node[key] = _coerce(value, node[key], here, source)


def _decode(value: Any) -> Any:
    """Python literals in strings become values: yaml knows no tuples and takes `1e-5` for a word."""
    if isinstance(value, str):
        try:
            return literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value
    return value


def _coerce(new: Any, known: Any, path: tuple[str, ...], source: str) -> Any:
    value = _decode(new)
    if isinstance(known, str) and isinstance(new, str) and value is not None and not isinstance(value, str):
        value = new  # a name may look like a number
    if value is None:  # "not set", in place of any type, as in yacs
        return None
    if known is None:
        return _checked_type(value, path, source)
    if isinstance(known, (list, tuple)) and isinstance(value, (list, tuple)):
        wrong = [each for each in value if known and _are_numbers(known) and not _are_numbers([each])]
        if not wrong:
            return type(known)(value)
    elif type(value) is type(known):
        return value
    if isinstance(known, float) and type(value) is int and abs(value) < 2**63:
        return float(value)
    kind = "numbers" if type(value) is type(known) else type(known).__name__
    quotes = "; yaml takes off, on, yes, no and numbers for values: write a text in quotes"
    raise UserError(
        f"{'.'.join(path)} is {_brief(value)} ({type(value).__name__}) in {source};"
        f" expected {kind}, as in {_brief(known)}{quotes if isinstance(known, str) else ''}"
    )


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values)


def _checked_type(value: Any, path: tuple[str, ...], source: str) -> Any:
    if type(value) not in _VALID_TYPES:
        names = ", ".join(sorted(kind.__name__ for kind in _VALID_TYPES))
        raise UserError(
            f"{'.'.join(path)} is {_brief(value)} ({type(value).__name__}) in {source}; "
            f"a config holds only {names}"
        )
    return value


def _unknown_key(root: CfgNode, path: tuple[str, ...], value: Any, source: str) -> str:
    while isinstance(value, Mapping) and len(value) == 1:  # OPTIMS.LR rather than OPTIMS
        (key, value), *_ = value.items()
        path = (*path, str(key))
    name = ".".join(path)
    known = list(_all_keys(root))
    section, leaf = name.rpartition(".")[::2]
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    by_leaf = _nearest(leaf, siblings)
    nearest = f"{section}.{by_leaf}".lstrip(".") if by_leaf else _nearest(name, known, cutoff=0.0)
    return f"unknown config key {name} ({source}); did you mean {nearest}?"


def _nearest(name: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    folded = {key.casefold(): key for key in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def _all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{key}.")


def _brief(value: Any) -> str:
    return shortened(repr(value), 200)


def _read_with_bases(
    filename: str, chain: tuple[str, ...] = (), read: list[str] | None = None
) -> list[tuple[str, Mapping[str, Any]]]:
    """The files to merge, each with its values: a file's bases in their order, then the file itself.

    Args:
        chain: the files whose base this one is, the first one first.
        read: all files read so far.
    """
    path = os.fspath(filename)
    if not os.path.isfile(path):
        named = f", the {BASE_KEY} of {chain[-1]}," if chain else ""
        raise MissingFileError(f"config file {path}{named} does not exist")
    if os.path.realpath(path) in map(os.path.realpath, chain):
        raise UserError(f"config files are each other's {BASE_KEY}: {' -> '.join([*chain, path])}")
    read = [] if read is None else read
    read.append(path)
    if len(read) > MOST_FILES:
        raise UserError(f"{read[0]} has more than {MOST_FILES} files as its {BASE_KEY}, too many to be meant")
    values = _read_yaml(path)
    bases = values.pop(BASE_KEY, None) or []
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(
            f"{BASE_KEY} in {path} is {_brief(bases)}; expected the path of a yaml file, or a list"
        )
    layers: list[tuple[str, Mapping[str, Any]]] = []
    for base in bases:
        place = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        layers += _read_with_bases(os.path.normpath(place), (*chain, path), read)
    return [*layers, (path, values)]


def _read_yaml(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        values = load_yaml(file.read(), path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected keys with values")
    return values
