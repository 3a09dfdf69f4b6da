"""What counts as nonsense that was accepted: it was taken without a word, and nobody can have meant it.

A wrong number is what all of these would lead to: a value that is no number, a class that CLIP cannot tell
from another, an image that is trained on and tested, bytes that are not those that were saved. A file that is
damaged but still holds the same values may be taken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dassl.config.influence import flat
from prompted_clip.escaping import printable
from prompted_clip.simple_tokenizer import default_tokenizer


class Nonsense(Exception):
    """Something was taken that cannot be meant; says what."""


def check(holds: bool, words: str) -> None:
    if not holds:
        raise Nonsense(words)


def check_settings(cfg: Mapping[str, Any]) -> None:
    """No setting is NaN or infinite."""
    for key, value in flat(cfg).items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        finite = all(math.isfinite(each) for each in numbers if isinstance(each, float))
        check(finite, f"{key} is {value}")


def check_names(names: Mapping[int, Any]) -> None:
    """Each class has a name that can be printed, and no two are the same tokens."""
    tokens = {}
    for label, name in names.items():
        check(isinstance(name, str) and bool(name.strip()), f"the name {name!r} of {label}")
        check(printable(name) == name, f"the name {name!r} cannot be printed")
        tokens[tuple(default_tokenizer().encode(name.replace("_", " ")))] = name
    check(len(tokens) == len(names), f"two classes of one sentence among {names}")


def check_dataset(dataset: Any, root: Path) -> None:
    """Names as above; an image is in one part, once, below the root; each class is learned and tested."""
    parts = {"train": dataset.train_x, "val": dataset.val or [], "test": dataset.test}
    items = [item for part in parts.values() for item in part]
    names: dict[int, str] = {}
    for item in items:
        check(names.setdefault(item.label, item.classname) == item.classname, f"two names of {item.label}")
        check(os.path.isfile(item.impath), f"{item.impath!r} is no file")
        inside = os.path.abspath(item.impath).startswith(os.path.join(os.path.abspath(root), ""))
        check(inside, f"{item.impath!r} outside of the root")
    check_names(names)
    check(sorted(names) == list(range(len(names))), f"labels {sorted(names)}")
    check({item.label for item in parts["train"]} == {*names}, "a class that is not trained")
    paths = [os.path.normpath(item.impath) for item in items]
    check(len({*paths}) == len(paths), "an image twice")
    check(bool(parts["test"]), "nothing to test")


def check_image(read: Image.Image, is_grey: bool) -> None:
    """Three channels, of a shape that a resize does not blow up; grey is neither black nor white."""
    check(read.mode == "RGB", f"mode {read.mode}")
    check(max(read.size) <= 1000 * min(read.size), f"size {read.size}")
    check(not is_grey or 0 < float(np.asarray(read).mean()) < 255, "16 bits that were cut off")


def check_unpacked(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Files and folders alone, and each with the content that was packed."""
    for path in folder.rglob("*"):
        check(not path.is_symlink() and (path.is_file() or path.is_dir()), f"{path} is a link or a device")
        if path.is_file():
            check(path.read_bytes() in contents.values(), f"{path} has another content")


def check_tensors(taken: Mapping[str, Any], saved: Mapping[str, Any] | None = None) -> None:
    """All numbers finite; and those that were saved, where only bytes of the file were changed."""
    for name, value in taken.items():
        if not isinstance(value, torch.Tensor):
            continue
        check(bool(value.isfinite().all()), f"{name} is not finite")
        if saved is not None and name in saved:
            check(torch.equal(value.float().flatten(), saved[name].float().flatten()), f"other {name}")


def check_text(text: str, what: str) -> None:
    """Nothing in it is obeyed by a terminal, a browser or a spreadsheet."""
    kept = text.replace("\n", "").replace("\t", "")
    check(printable(kept) == kept, f"a control character in {what}")
    check("<script>alert" not in text or not what.endswith(".html"), f"a script in {what}")
    if what.endswith(".csv"):
        cells = [cell.strip('"') for line in text.splitlines() for cell in line.split(",")]
        check(not any(cell.startswith(("=", "@")) for cell in cells), f"a formula in {what}")


def check_runs(runs: Any) -> None:
    """Accuracies are percentages, and the runs of a cell have one identity."""
    for run in runs:
        check(run.accuracy is None or 0 <= run.accuracy <= 100, f"accuracy {run.accuracy}")
    cells: dict[tuple, set[str]] = {}
    for run in runs:
        if run.result is not None and run.result.cell:
            place = run.identity[:5] + run.identity[6:]
            cells.setdefault(place, set()).add(run.result.cell)
    several = [place for place, found in cells.items() if len(found) > 1]
    check(not several, f"a mean over different settings: {several[:1]}")
