"""Checks each number of a result.json against the predictions beside it: that they agree, and no more."""

from __future__ import annotations

import contextlib
import io
import math
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Subset

from dassl.config.influence import differences, flat
from dassl.engine.identity import identity_of, image_root, path_below
from dassl.evaluation import Prediction, read_predictions
from experiments.load_run import load_trainer
from experiments.record import sealed
from experiments.results.result_file import RESULT_FILES
from experiments.run_folder import PREDICTIONS_OF, read_json
from experiments.tasks import task_of
from prompted_clip.errors import UserError
from prompted_clip.files import sha256_of_file

ROUNDING = 1e-6  # percent: numbers are computed anew from the same whole numbers
RERUN_SEED = 0
RERUN_TOLERANCE = 0.05  # of a logit: another device, batch or number format rounds otherwise
FIELDS = {  # of a result.json, and the setting that says the same
    "trainer": "TRAINER.NAME",
    "dataset": "DATASET.NAME",
    "classes": "DATASET.SUBSAMPLE_CLASSES",
    "seed": "SEED",
    "backbone": "MODEL.BACKBONE.NAME",
}


@dataclass
class Verdict:
    """What was found.

    Attributes:
        checked: results whose numbers were computed anew, and that fit.
        faults: what does not fit: file, and both numbers; a line each.
        unchecked: what could not be computed anew, and why; a line each.
    """

    checked: int = 0
    faults: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def result_paths(folder: Path) -> list[Path]:
    """The files of results below a folder."""
    return sorted(path for name in RESULT_FILES for path in folder.rglob(name))


def check_result(path: Path, verdict: Verdict) -> None:
    """Adds to the verdict what a result.json, its predictions and its identity say of each other."""
    try:
        content = read_json(path)
        faults = [*_seal(content), *_identity(content)]
        if content.get("predictions_sha256"):
            faults += _against_predictions(path, content)
        elif path.with_name(PREDICTIONS_OF[path.name]).is_file():
            faults.append("names no predictions, but such a file lies beside it")
        else:
            verdict.unchecked.append(f"{path}: there are no predictions, so its numbers are not checked")
    except (UserError, OSError) as error:
        faults = [str(error)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        faults = [f"holds a value that does not fit ({error!r})"]
    verdict.faults += [f"{path}: {fault}" for fault in faults]
    verdict.checked += not faults


def _seal(content: Mapping[str, Any]) -> Iterator[str]:
    if "sha256" in content and sealed(content)["sha256"] != content["sha256"]:
        yield "was changed after it was written: its sha256 is of other fields"


def _identity(content: Mapping[str, Any]) -> Iterator[str]:
    """Where the identity is not of the settings and parts that it lists, or fields are of other settings."""
    if "task" in content and content["task"] != (task := task_of(content)):
        yield f"task is {content['task']!r}, what was tested is {task!r}"
    identity = content.get("identity")
    if not identity:
        return
    again = identity_of(identity["settings"], identity["parts"])
    for name in ("run", "cell"):
        if identity[name] != again[name]:
            yield f"identity.{name} is {identity[name][:9]}, its settings and parts give {again[name][:9]}"
    settings = flat(content.get("settings") or {})
    for difference in differences(identity["settings"], settings):
        yield f"of its identity and its settings, {difference}"
    for name, key in FIELDS.items():
        if key in settings and content.get(name) != settings[key]:
            yield f"{name} is {content.get(name)!r}, {key} is {settings[key]!r}"


def _against_predictions(path: Path, content: Mapping[str, Any]) -> Iterator[str]:
    file = path.with_name(PREDICTIONS_OF[path.name])
    if not file.is_file():
        yield f"{file.name} is not there"
        return
    if sha256_of_file(file) != content["predictions_sha256"]:
        yield f"{file.name} was changed after it was written: its sha256 is another"
    rows = read_predictions(file)
    for name, wanted in numbers_of(rows).items():
        found = content.get(name, content["results"].get(name))
        if isinstance(wanted, float):
            fits = isinstance(found, (int, float)) and math.isclose(
                found, wanted, rel_tol=0, abs_tol=ROUNDING
            )
        else:
            fits = found == wanted
        if (name in content["results"] or name in content) and not fits:
            yield f"{name} is {found}, {file.name} gives {wanted}"
    told = {each["label"]: (each["total"], each["correct"]) for each in content.get("per_class") or ()}
    for label, wanted in per_class_of(rows).items():
        if told and told.get(label) != wanted:
            yield f"class {label} has {told.get(label)} images and hits, {file.name} gives {wanted}"
    yield from _inconsistent(rows, len(content.get("classnames") or ()), file.name)


def _inconsistent(rows: Sequence[Prediction], classes: int, name: str) -> Iterator[str]:
    """The first rows of predictions that cannot be."""
    counts = Counter(row.image for row in rows)
    image, most = counts.most_common(1)[0]
    if most > 1:
        yield f"{name} has {image} {most} times"
    for row in rows:
        best = dict(zip(row.classes, row.scores, strict=True)).get(row.predicted)
        if row.scores and best != max(row.scores):
            yield f"{name}: {row.image} is predicted as {row.predicted}, which has not the highest score"
            return
        if classes and not 0 <= row.predicted < classes:
            yield f"{name}: {row.image} is predicted as {row.predicted}, of {classes} classes"
            return


def per_class_of(rows: Sequence[Prediction]) -> dict[int, tuple[int, int]]:
    """Images and hits by label."""
    totals = Counter(row.label for row in rows)
    hits = Counter(row.label for row in rows if row.label == row.predicted)
    return {label: (totals[label], hits[label]) for label in sorted(totals)}


def numbers_of(rows: Sequence[Prediction]) -> dict[str, Any]:
    """The numbers of a result that predictions give, by their names there; metrics in percent."""
    classes = per_class_of(rows)
    predicted = Counter(row.predicted for row in rows)
    correct = sum(hits for _, hits in classes.values())
    f1 = [2 * hits / (total + predicted[label]) for label, (total, hits) in classes.items()]
    accuracy = 100 * correct / len(rows)
    return {
        "total": len(rows),
        "correct": correct,
        "accuracy": accuracy,
        "error_rate": 100 - accuracy,
        "macro_f1": 100 * sum(f1) / len(f1),
        "perclass_accuracy": 100 * sum(hits / total for total, hits in classes.values()) / len(classes),
    }


def rerun(path: Path, count: int, root: str = "") -> tuple[int, float, list[str]]:
    """Predicts some images of a run again, by its saved model and its trainer's own test.

    Args:
        path: its result.json.
        count: how many images; the same ones each time.
        root: folder of the datasets, where it is another than the run's.

    Returns:
        How many images were predicted, by how much a score differs at most, and what does not fit.

    Raises:
        FileNotFoundError: there is no model, or no data.
        ValueError: it does not fit this version.
    """
    stored = {row.image: row for row in read_predictions(path.with_name(PREDICTIONS_OF[path.name]))}
    trainer = load_trainer(path.parent, root)
    loader = trainer.val_loader if read_json(path).get("split") == "val" else trainer.test_loader
    images = [item.impath for item in loader.dataset.data_source]
    base = image_root(trainer.cfg, trainer.dm.dataset)
    known = [number for number, image in enumerate(images) if path_below(base, image) in stored]
    if not known:
        raise UserError(f"{path}: none of its images is among those of the dataset in {base}.")
    drawn = sorted(random.Random(RERUN_SEED).sample(known, min(count, len(known))))
    part = DataLoader(
        Subset(loader.dataset, drawn), batch_size=loader.batch_size or 32, collate_fn=loader.collate_fn
    )
    trainer.test_loader = trainer.val_loader = part
    trainer.cfg.defrost()
    for key in ("SAVE_PREDICTIONS", "COMPUTE_CMAT", "CALIBRATE"):  # which read or write more
        trainer.cfg.TEST[key] = False
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer.output_dir = folder
        trainer.test()
    faults, worst = [], 0.0
    for row in trainer.tested_predictions or ():
        image = path_below(base, row.image)
        there = stored[image]
        again = dict(zip(row.classes, row.scores, strict=True))
        both = {
            label: score for label, score in zip(there.classes, there.scores, strict=True) if label in again
        }
        apart = max((abs(again[label] - score) for label, score in both.items()), default=math.inf)
        near = again.get(there.predicted, -math.inf) >= max(row.scores) - RERUN_TOLERANCE
        worst = max(worst, apart)
        if not near or apart > RERUN_TOLERANCE:
            faults.append(
                f"{path}: {image} is stored as {there.predicted} and predicted again as {row.predicted}; "
                f"scores differ by up to {apart:.3g}"
            )
    return len(drawn), worst, faults
