"""The keys that this project adds to the engine's configuration, what plugins add, and `fit`'s settings."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from yacs.config import CfgNode

from dassl.data.own_data import ClassNames
from dassl.engine import TRAINER_REGISTRY
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.factory import EMBEDDED

# What the published configurations have in common, configs/trainers/vit_b16.yaml: `from_clip` starts from it.
COMMON = {
    "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
    "DATALOADER.TEST.BATCH_SIZE": 100,
    "INPUT.TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
    "OPTIM.NAME": "sgd",
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
}


def extend_cfg(cfg) -> None:
    """Adds the keys that datasets and trainers of this project read; a trainer's `settings` say its own."""
    cfg.DATASET.ROOT = "data"  # folder that holds the datasets; also `--root`
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # `all`, or the `base` or `new` half of the classes
    cfg.DATASET.FEW_SHOT_LIST = ""  # the few_shot.json of a run, to train on the same images; "": draws them
    cfg.DATASET.REBUILD_INDEX = False  # lists the folders of images anew, whatever an index on disk says
    cfg.DATASET.OWN = CfgNode()  # own data, see configs/datasets/folder.yaml, csv.yaml and hub.yaml
    # Own data: the folder, the table, or the id of a dataset of the Hugging Face hub. Relative paths start
    # from DATASET.ROOT; "": DATASET.ROOT itself.
    cfg.DATASET.OWN.PATH = ""
    cfg.DATASET.OWN.TEMPLATE = "a photo of a {}."  # the sentence of a class; `{}` is its name
    cfg.DATASET.OWN.CLASS_NAMES = ClassNames(new_allowed=True)  # names that differ: {folder or label: name}
    cfg.DATASET.OWN.CLASS_LIST = []  # all names, for the sorted folders or labels, instead of CLASS_NAMES
    # The classes that SUBSAMPLE_CLASSES `new` keeps; `base` keeps the others. Empty: base is the first half.
    cfg.DATASET.OWN.NOVEL_CLASSES = []
    cfg.DATASET.OWN.SPLIT = [0.5, 0.2, 0.3]  # shares of train, val and test, where the data does not say
    cfg.DATASET.OWN.PATH_COLUMN = "path"  # column of a table or of the hub that names or holds the image
    cfg.DATASET.OWN.LABEL_COLUMN = "label"  # column of a table or of the hub that names the class
    cfg.DATASET.OWN.SPLIT_COLUMN = "split"  # column of a table that says train, val or test; may be missing
    cfg.DATASET.OWN.SUBSET = ""  # subset of a dataset of the hub that has several
    cfg.DATASET.OWN.REVISION = ""  # branch, tag or commit of a dataset of the hub; "": the newest
    cfg.MODEL.BACKBONE.PATH = ""  # a file of CLIP's weights; "": those that NAME stands for
    # Classes that run through the text encoder at once: fewer take less memory and more time. 0: 2,048,
    # or 256 where whole sentences run; -1: all.
    cfg.MODEL.TEXT_CHUNK = 0
    cfg.TRAIN.CUDA_GRAPHS = "auto"  # `auto`: replays the training step on a GPU where it can; `off`: never
    for name in TRAINER_REGISTRY.registered_names():
        settings = getattr(TRAINER_REGISTRY.get(name), "settings", None)
        if settings is not None:
            cfg.TRAINER[name.upper()] = CfgNode({"PREC": "fp32", **settings})


def load_plugin(name: str) -> None:
    """Imports a module by its name, or a file by its path.

    Raises:
        FileNotFoundError: there is no such module or file.
        ValueError: the file has the name of another module.
    """
    path = Path(name).expanduser()
    if path.suffix == ".py":
        if not path.is_file():
            raise MissingFileError(f"--plugin {name}: there is no such file.")
        # Workers that are spawned import it by its name, from the same sys.path.
        sys.path.append(str(path.resolve().parent))
        importlib.invalidate_caches()
        known = path.stem in sys.modules or "." in path.stem
        spec = None if known else importlib.util.find_spec(path.stem)
        if spec is None or not spec.origin or not path.samefile(spec.origin):
            raise UserError(
                f"--plugin {name}: {path.stem} stands for another module; give the file another name."
            )
        importlib.import_module(path.stem)
        return
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package that it should be in
        found = None
    if found is None:
        raise MissingFileError(
            f"--plugin {name}: there is no such module; for a file, give a path that ends in .py."
        )
    importlib.import_module(name)


def load_plugins_of(command: Sequence[str]) -> None:
    """Imports what the --plugin flags of a run's command name, as far as it is not imported yet."""
    words = [str(word) for word in command]
    named = [after for flag, after in pairwise(words) if flag == "--plugin"]
    named += [word.partition("=")[2] for word in words if word.startswith("--plugin=")]
    for each in named:
        if Path(each).stem not in sys.modules and each not in sys.modules:
            load_plugin(each)


def set_threads(cfg) -> None:
    """Has the process compute by one thread for the embedded CLIP, unless OMP_NUM_THREADS says otherwise.

    Its operations are so small that threads mostly wait for each other: on two busy cores, a step was seen to
    take 10 to 100 times as long with two threads as with one.
    """
    if cfg.MODEL.BACKBONE.NAME in EMBEDDED and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
