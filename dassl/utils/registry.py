"""Names for classes and functions, so that a config can choose among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prompted_clip.errors import UserError

from .tools import get_most_similar_str_to_a_from_b

__all__ = ["Registry"]


class Registry:
    """A table from names to objects.

    ```python
    TRAINER_REGISTRY = Registry("TRAINER")

    @TRAINER_REGISTRY.register()
    class MyTrainer: ...

    TRAINER_REGISTRY.register(my_function)
    TRAINER_REGISTRY.get("MyTrainer")
    ```
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Registers an object under its `__name__`; without an object it is a decorator.

        Raises:
            ValueError: the name is taken and `force` is not set.
        """
        if obj is None:
            return self._decorator(force)
        name = obj.__name__
        if name in self._obj_map and not force:
            raise UserError(
                f"{self._name} already has a {name!r}; register(force=True) puts the new one in its place"
            )
        self._obj_map[name] = obj
        return obj

    def _decorator(self, force: bool) -> Callable[[Any], Any]:
        return lambda obj: self.register(obj, force=force)

    def get(self, name: str) -> Any:
        """The object of that name.

        Raises:
            ValueError: there is none; the message names the most similar one.
        """
        if name not in self._obj_map:
            nearest = get_most_similar_str_to_a_from_b(str(name), self._obj_map)
            hint = f"did you mean {nearest!r}?" if nearest else "nothing is registered"
            raise UserError(f"{self._name} has no {name!r}; {hint}")
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """All names, in order of registration."""
        return list(self._obj_map)
