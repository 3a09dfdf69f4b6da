"""Small helpers for files, names and seeds."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import platform
import random
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import PIL
import torch

from prompted_clip.console import shortened
from prompted_clip.errors import UserError
from prompted_clip.files import atomic_open, remove_unfinished
from prompted_clip.images import read_image

__all__ = [
    "atomic_open",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "remove_unfinished",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def mkdir_if_missing(dirname: str) -> None:
    """Makes a folder and those above it."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Whether `fpath` is a file; warns if it is not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def read_json(fpath: str) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: the file is not valid JSON.
    """
    try:
        with open(fpath, encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:  # broken JSON, no text at all, or nested without end
        raise UserError(f"{fpath} is not valid JSON: {error}") from error


def write_json(obj: Any, fpath: str) -> None:
    """Writes a JSON file, with the folders above it; whole or not at all."""
    with atomic_open(fpath) as file:
        json.dump(obj, file, indent=4, separators=(",", ": "))


def set_random_seed(seed: int) -> None:
    """Seeds Python's, numpy's and torch's generators (the GPUs' too). 0 is a seed like any other.

    Raises:
        ValueError: numpy takes no such seed.
    """
    if not 0 <= seed < 1 << 32:
        raise UserError(f"SEED is {shortened(str(seed), 40)}; allowed are 0 to {(1 << 32) - 1}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def collect_env_info() -> str:
    """Versions of what results depend on, and the devices, as text."""
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "Python": platform.python_version(),
        "Platform": platform.platform(),
        "CPUs": os.cpu_count(),
        "PyTorch": torch.__version__,
        "CUDA of PyTorch": torch.version.cuda,
        "GPUs": ", ".join(devices) or None,
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
    }
    return "\n".join(f"{name}: {fact}" for name, fact in facts.items())


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # on the path without being installed
            continue
    return found


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """The names in a folder that do not start with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """The string of `b` most similar to `a`, whatever its case; None if there is none."""
    folded = {name.casefold(): name for name in b}
    nearest = difflib.get_close_matches(a.casefold(), folded, n=1, cutoff=0.0)
    return folded[nearest[0]] if nearest else None


def check_availability(requested: str, available: Iterable[str], what: str = "the name") -> None:
    """Checks that a name is among those available; `what` says in the message whose name it is.

    Raises:
        ValueError: it is not; the message names the most similar one.
    """
    available = list(available)
    if requested not in available:
        nearest = get_most_similar_str_to_a_from_b(str(requested), available)
        hint = f" did you mean {nearest!r}?" if nearest else ""
        raise UserError(f"{what} is {requested!r};{hint} available: {', '.join(available) or 'nothing'}")


def tolist_if_not(x: Any) -> list[Any]:
    """`x` itself if it is a list, else a list of `x` alone."""
    return x if isinstance(x, list) else [x]
