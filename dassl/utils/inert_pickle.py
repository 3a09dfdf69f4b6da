"""Reads pickles without running anything in them.

A pickle is a program for a stack machine, whose operations REDUCE, NEWOBJ, OBJ, INST and BUILD call whatever
the file names. This machine never looks a name up: a global is a `Name`, a piece of text. What is called is
one of our own functions, found in a table, or nothing; an object of a class that is not in the table is a
`Placeholder`. No attribute whose name comes from the file is ever read or set, so that there is nothing to
subclass, patch or reach through.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}


class RefusedError(ValueError):
    """The pickle asks for a call that is not allowed."""


class Name:
    """The name of a class or function in a pickle."""

    __slots__ = ("full",)

    def __init__(self, module: str, name: str) -> None:
        package, dot, rest = module.partition(".")
        self.full = f"{_RENAMED.get(package, package)}{dot}{rest}.{name}"

    def __repr__(self) -> str:
        return ascii(self.full[:200])  # a file's text may hold line breaks and terminal codes


class Placeholder(dict):
    """Stands for an object of a class that is not known: a dictionary of its attributes that does nothing.

    Attributes:
        class_name: what the file calls the class.
        args: what the class would have been called with.
        elements: what was appended, if the class is a kind of list.
        state: a state that is not a dictionary of attributes.
    """

    def __init__(self, class_name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.class_name = class_name
        self.args = args
        self.elements: list[Any] = []
        self.state: Any = None

    # Like most objects, and unlike a dict, it can be a key and equals only itself.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __repr__(self) -> str:
        return f"<placeholder of {self.class_name[:200]!a}>"

    def set_state(self, state: Any) -> None:
        """Takes what `__setstate__` would get: attributes, attributes and slots, or anything else."""
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        if all(part is None or isinstance(part, dict) for part in parts):
            for part in parts:
                self.update(part or {})
        else:
            self.state = state


@dataclass
class Tables:
    """What a kind of file may hold beyond numbers, texts and built-in containers.

    Attributes:
        rebuilders: what may be called, by full name, and what is called in its place.
        constants: globals that are data.
        set_state: gives an object that a rebuilder has made its state; False if it does not know the object.
    """

    rebuilders: Mapping[str, Callable[..., Any]]
    constants: Mapping[str, Any]
    set_state: Callable[[Any, Any], bool]


def unpickle(stream: Any, tables: Tables, storage: Callable[[Any], Any] | None = None) -> Any:
    """Reads one pickle, of any protocol, and leaves the stream behind it.

    Args:
        stream: an open binary file, or what reads like one.
        tables: what is known.
        storage: resolves persistent ids; None: there may be none.

    Raises:
        RefusedError: the pickle calls a function that is not among the rebuilders, or the like.
        Exception: of many kinds, if the pickle is broken.
    """
    machine = _Machine(tables, storage)
    for operation, argument, _ in pickletools.genops(stream):
        machine.run(operation.name, argument)
    return machine.stack.pop()


class _Machine:
    def __init__(self, tables: Tables, storage: Callable[[Any], Any] | None) -> None:
        self.tables = tables
        self.storage = storage
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, operation: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match operation:
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                push(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                push(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BYTEARRAY8":
                push(argument)
            case _ if operation in _FRESH:
                push(_FRESH[operation]())
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                pop()
            case "POP" | "POP_MARK":
                self.above_mark()
            case "DUP":
                push(self.stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                backwards = [pop() for _ in range(int(operation[-1]))]
                push(tuple(reversed(backwards)))
            case "TUPLE" | "LIST" | "FROZENSET":
                items = self.above_mark()
                self.stack.append({"TUPLE": tuple, "LIST": list, "FROZENSET": frozenset}[operation](items))
            case "DICT":
                items = self.above_mark()
                self.stack.append(dict(zip(items[0::2], items[1::2], strict=True)))
            case "APPEND":
                item = pop()
                _extend(self.stack[-1], [item])
            case "APPENDS":
                items = self.above_mark()
                _extend(self.stack[-1], items)
            case "ADDITEMS":
                items = self.above_mark()
                _expect(self.stack[-1], set).update(items)
            case "SETITEM":
                value, key = pop(), pop()
                _expect(self.stack[-1], dict)[key] = value
            case "SETITEMS":
                items = self.above_mark()
                _expect(self.stack[-1], dict).update(zip(items[0::2], items[1::2], strict=True))
            case "GLOBAL":
                push(self.named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = _expect(pop(), str), _expect(pop(), str)
                push(self.named(module, name))
            case "REDUCE":
                args, function = pop(), pop()
                push(self.call(function, _expect(args, tuple)))
            case "NEWOBJ":
                args, kind = pop(), pop()
                push(self.make(kind, _expect(args, tuple)))
            case "NEWOBJ_EX":
                _, args, kind = pop(), pop(), pop()
                push(self.make(kind, _expect(args, tuple)))
            case "OBJ":
                kind, *items = self.above_mark()
                self.stack.append(self.call(kind, tuple(items)))
            case "INST":
                items = self.above_mark()
                self.stack.append(self.call(Name(*argument.split(" ", 1)), tuple(items)))
            case "BUILD":
                state = pop()
                self.build(self.stack[-1], state)
            case "BINPERSID" if self.storage is not None:
                push(self.storage(pop()))
            case _:  # PERSID, EXT*, out-of-band buffers: torch writes none of them
                raise ValueError(f"the pickle operation {operation}")

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def named(self, module: str, name: str) -> Any:
        """What GLOBAL asks for: a constant, or else a name and no more."""
        reference = Name(module, name)
        return self.tables.constants.get(reference.full, reference)

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """What REDUCE asks for."""
        if not isinstance(function, Name):
            raise RefusedError(f"calls an object of type {type(function).__name__}")
        if function.full in ("copyreg.__newobj__", "copyreg.__newobj_ex__"):
            return self.make(args[0], args[1:])
        if function.full == "copyreg._reconstructor":  # how protocols 0 and 1 make an object
            kind, _, content = args
            made = self.make(kind, ())
            if isinstance(made, Placeholder):
                made.set_state(content)
            return made
        if function.full not in self.tables.rebuilders:
            raise RefusedError(f"calls {function!r}, which rebuilds neither tensors nor plain containers")
        return self.tables.rebuilders[function.full](*args)

    def make(self, kind: Any, args: tuple[Any, ...]) -> Any:
        """A new object of a class."""
        if not isinstance(kind, Name):
            raise RefusedError(f"makes an instance of an object of type {type(kind).__name__}")
        if kind.full in self.tables.rebuilders:
            return self.tables.rebuilders[kind.full](*args)
        return Placeholder(kind.full, args)

    def build(self, instance: Any, state: Any) -> None:
        """What BUILD asks for."""
        if isinstance(instance, Placeholder):
            instance.set_state(state)
        elif type(instance) is OrderedDict:  # a state dict carries the versions of its modules
            versions = state.get("_metadata") if isinstance(state, dict) else None
            if isinstance(versions, dict):
                instance._metadata = versions  # type: ignore[attr-defined]
        elif not self.tables.set_state(instance, state):
            raise RefusedError(f"sets the state of an object of type {type(instance).__name__}")


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, Placeholder):
        target.elements.extend(items)
    else:
        _expect(target, list).extend(items)


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value
