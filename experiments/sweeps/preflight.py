"""What is checked of a sweep before its first run starts, and not when it is in the middle."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from datasets.catalog_dataset import CatalogDataset
from experiments.configuration import build_parser, setup_cfg
from experiments.record import result_differences
from experiments.run_folder import RESULT_FILE
from experiments.sweeps.job import Job
from experiments.sweeps.wanted import Wanted
from prompted_clip.errors import MissingFileError, UserError
from trainers.configuration import load_plugin

MANY = 5  # results of other runs that are listed


def check(jobs: Sequence[Job], output: Path, on_disk: bool = True) -> None:
    """Reads each run's configuration, looks for its data, and compares what has a result already.

    Where all is right, datasets that the project draws itself are drawn.

    Args:
        on_disk: whether datasets, and what is tested, have to be there.

    Raises:
        FileNotFoundError: a dataset or a configuration is not there.
        ValueError: a wrong setting; or a folder holds the result of another run.
    """
    parser = build_parser()
    others, checked, wanted = [], set(), Wanted()
    to_draw: list[Any] = []  # configurations
    trained = {job.folder for job in jobs if job.planned.trains}
    for job in jobs:
        words = job.arguments(output)
        if job.weights and (job.needs in trained or not on_disk):  # there may be nothing to load yet
            at = words.index("--model-dir")
            del words[at : at + 2]
        args = parser.parse_args(words)
        for plugin in args.plugin:
            if plugin not in checked:
                load_plugin(plugin)
                checked.add(plugin)
        cfg = setup_cfg(args)
        check_classes(cfg, job)
        if on_disk and job.planned.dataset not in checked:
            checked.add(job.planned.dataset)
            if not is_there(cfg, job.planned.dataset):
                to_draw.append(cfg)
        path = output / job.folder / RESULT_FILE
        if on_disk and path.is_file():
            found = result_differences(path, wanted.identity(cfg, job, output))
            if found:
                others.append(f"{output / job.folder} ({found[0]})")
    if others:
        more = f" and {len(others) - MANY} more" if len(others) > MANY else ""
        raise UserError(
            f"{len(others)} folders hold results of other runs: {'; '.join(others[:MANY])}{more}. "
            "Give another --output, or remove them."
        )
    for cfg in to_draw:
        print(f"Drawing {cfg.DATASET.NAME} into {cfg.DATASET.ROOT}, once for all runs ...")
        progress = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
        with redirect_stdout(io.StringIO()), progress:
            DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


def check_classes(cfg: Any, job: Job) -> None:
    """Refuses tests on other classes of a method that learns something for each class.

    Raises:
        ValueError: names the method and the protocol.
    """
    planned = job.planned
    belongs = getattr(TRAINER_REGISTRY.get(planned.trainer), "belongs_to_classes", None)
    # The variants of ImageNet, whose names begin as its own does, have its classes.
    others = planned.classes == "new" or not planned.dataset.startswith(planned.source)
    if others and not planned.trains and belongs is not None and belongs(cfg):
        raise UserError(
            f"--trainers {planned.method}: {planned.trainer} learns something for each class it is trained "
            f"on, so that {planned.protocol} cannot test it on other classes. Leave it out; few_shot has it."
        )


def is_there(cfg: Any, name: str) -> bool:
    """Whether a dataset of the catalogue has its folder; False where the project can draw it.

    Raises:
        FileNotFoundError: there is none.
    """
    kind = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if not (isinstance(kind, type) and issubclass(kind, CatalogDataset) and kind.dataset_dir):
        return True
    folder = Path(cfg.DATASET.ROOT).expanduser() / kind.dataset_dir
    if folder.is_dir() or kind.make is not CatalogDataset.make:
        return folder.is_dir()
    raise MissingFileError(
        f"{cfg.DATASET.NAME}: there is no folder {folder}. Give the folder of the datasets as --root, or "
        f"fetch it: python -m datasets prepare {name} (docs/fetching_datasets.md)."
    )
