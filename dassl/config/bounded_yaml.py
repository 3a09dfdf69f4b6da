"""yaml of any origin: what it can expand to is bounded, and nothing in it is read as something else."""

from __future__ import annotations

import re
from typing import Any

import yaml

from prompted_clip.errors import UserError

MOST_BYTES, MOST_VALUES = 1_000_000, 100_000  # the second with each alias written out
NUMBER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")


def load_yaml(content: bytes | str, source: str) -> Any:
    """The values of a yaml text. Keys of mappings are texts, as written.

    Args:
        source: the file, for messages.

    Raises:
        ValueError: it is no yaml, has a key twice or an alias of itself, or is too large or deep to be meant.
    """
    if len(content) > MOST_BYTES:
        raise UserError(f"{source} has {len(content):,} bytes; allowed for yaml are {MOST_BYTES:,}")
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST_VALUES:
            raise UserError(f"{source}: its aliases stand for more than {MOST_VALUES:,} values")
        return loader.construct_document(node)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of many kinds: yaml's, and what its constructors stumble over
        raise UserError(f"{source}{_place(error)}") from error


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or " ".join(str(error).split())[:200]
    if isinstance(error, RecursionError) or "nesting depth" in reason:
        reason = "it is nested too deep to be meant"
    elif isinstance(error, UnicodeDecodeError | yaml.reader.ReaderError):
        reason = "not a text file"
    return f"{where}: not valid yaml: {reason}"


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for, with aliases written out. Its keys become texts.

    Args:
        sizes: by the nodes' ids; 0 for those that hold this one.
    """
    if id(node) not in sizes:
        sizes[id(node)] = 0
        children = list(node.value) if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            _check_keys([key for key, _ in children])
            children = [value for _, value in children]
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    if not sizes[id(node)]:
        raise _refusal("an alias of what holds it", node)
    return sizes[id(node)]


def _check_keys(keys: list[yaml.Node]) -> None:
    seen: set[str] = set()
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            raise _refusal("a key that is no text", key)
        if key.tag == "tag:yaml.org,2002:merge":  # <<, which may come several times
            continue
        if key.value in seen:
            raise _refusal(f"the key {key.value[:80]!r} stands there twice", key)
        seen.add(key.value)
        key.tag = "tag:yaml.org,2002:str"


def _refusal(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def construct_yaml_int(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if not NUMBER.fullmatch(text):  # octal 012, sexagesimal 12:30
            value = super().construct_yaml_int(node)
            raise _refusal(f"{text[:80]} means {value} in yaml; write that, or the text in quotes", node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> float:
        if ":" in node.value:
            raise _refusal(f"{node.value[:80]} is sexagesimal in yaml; write the text in quotes", node)
        return super().construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
