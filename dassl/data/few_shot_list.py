"""The few-shot images of a run as a list with a hash, so that other runs can be compared or use it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dassl.data.class_names import brief
from dassl.data.splits import Row, Split, read_json, write_json
from prompted_clip.errors import MissingFileError, UserError

FIELDS = {"dataset": str, "shots": int, "seed": int, "sha256": str, "train": list, "val": list}


@dataclass(frozen=True)
class Sample:
    """The training and validation images of a run, of all classes, base and new.

    Attributes:
        shots: per class; -1 for all images.
    """

    dataset: str
    shots: int
    seed: int
    train: Sequence[Row]
    val: Sequence[Row]

    @cached_property  # takes a while for ImageNet's 1.28 million paths
    def sha256(self) -> str:
        """Hash of the lines `train`, all training paths, `val`, all validation paths."""
        digest = hashlib.sha256(b"train")
        for path, _, _ in self.train:
            digest.update(f"\n{path}".encode("utf-8", "surrogatepass"))
        digest.update(b"\nval")
        for path, _, _ in self.val:
            digest.update(f"\n{path}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def content(self) -> dict[str, Any]:
        """What `read_sample` reads. With `shots` -1 it holds numbers of images only."""
        parts: dict[str, Any] = {"train": len(self.train), "val": len(self.val)}
        if self.shots != -1:
            parts = {part: [row[0] for row in getattr(self, part)] for part in parts}
        head = {"dataset": self.dataset, "shots": self.shots, "seed": self.seed, "sha256": self.sha256}
        return {**head, **parts}

    def save(self, path: str) -> None:
        """Writes `content` into a file."""
        write_json(self.content(), path)


def read_sample(path: str, dataset: str, split: Split) -> Sample:
    """Reads a list that `Sample.save` wrote; each image's class is the split's, and its shots are counted.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no such list, was changed, is of another dataset, or names other images than
            the split has.
    """
    where = f"DATASET.FEW_SHOT_LIST {path}"
    if not os.path.isfile(path):
        raise MissingFileError(f"{where}: there is no such file. Give the few_shot.json of a run.")
    content = read_json(path)
    for field, kind in FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(field), kind):
            raise UserError(
                f"{where} has no {field} ({kind.__name__}); expected is the few_shot.json of a few-shot run."
            )
    if content["dataset"] != dataset:
        raise UserError(f"{where} is of {brief(content['dataset'])}; DATASET.NAME is {dataset}.")
    parts = {}
    for part in ("train", "val"):
        wrong = next((image for image in content[part] if not isinstance(image, str)), None)
        if wrong is not None:
            raise UserError(f"{where}: {part} holds {brief(wrong)}; expected are paths of images.")
        rows = {row[0]: row for row in getattr(split, part)}
        twice = [image for image, count in Counter(content[part]).items() if count > 1]
        if twice:
            raise UserError(f"{where}: {part} lists {brief(twice[0])} more than once. Keep one.")
        unknown = [image for image in content[part] if image not in rows]
        if unknown:
            raise UserError(
                f"{where}: {len(unknown)} of {len(content[part])} images are not in {part} of this split, "
                f"the first: {brief(unknown[0], 200)}. It was drawn from another split; use that one."
            )
        parts[part] = [rows[image] for image in content[part]]
    shots = max(Counter(label for _, label, _ in parts["train"]).values(), default=0)
    sample = Sample(dataset, shots, content["seed"], parts["train"], parts["val"])
    if sample.sha256 != content["sha256"]:
        raise UserError(f"{where} was changed: its sha256 is {sample.sha256}, not {content['sha256'][:100]}.")
    names = {label: name for _, label, name in split.train}
    missing = sorted(names.keys() - {label for _, label, _ in sample.train})
    if missing:
        raise UserError(f"{where} has no image of {len(missing)} classes, the first: {names[missing[0]]!r}.")
    return sample


def shots_of(cfg: Any, dataset: Any) -> int:
    """Training images per class: of the list DATASET.FEW_SHOT_LIST, or as DATASET.NUM_SHOTS says."""
    sample = getattr(dataset, "sample", None)
    listed = getattr(cfg.DATASET, "FEW_SHOT_LIST", "")
    return sample.shots if listed and sample is not None else cfg.DATASET.NUM_SHOTS
