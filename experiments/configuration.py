"""Command line → configuration: the flags of `train.py`, the files that they name, and what plugins add."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from yacs.config import CfgNode

import datasets  # noqa: F401  (registers the datasets)
import trainers  # noqa: F401  (registers the methods)
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from datasets.own import ClassNames
from prompted_clip.errors import MissingFileError, UserError

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DATASET = "shapes"  # embedded: needs no download
# Where `~` is the user's home, also where no shell expands it: in yaml, in quotes, after `=`.
PATH_FLAGS = ("root", "output_dir", "resume", "model_dir", "config_file", "dataset_config_file")
PATH_KEYS = (
    *("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "DATASET.OWN.PATH", "DATASET.FEW_SHOT_LIST"),
    *("DATALOADER.TEST_CACHE", "MODEL.INIT_WEIGHTS", "MODEL.BACKBONE.PATH"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Prompt learning for CLIP. Without a dataset, the embedded one is used.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--root", default="", help="folder of the datasets; by default data")
    add(
        "--output-dir",
        default="",
        help="folder of logs and checkpoints; goes on from the last one there",
    )
    add("--resume", default="", help="go on from the checkpoint in this folder instead")
    add(
        "--seed",
        type=int,
        default=-1,
        help="of all that is random; if negative, only the few-shot sample is seeded",
    )
    add("--source-domains", nargs="+", help="source domains, for datasets that have domains")
    add("--target-domains", nargs="+", help="target domains, for datasets that have domains")
    add("--transforms", nargs="+", help="names of the training transforms")
    add("--config-file", default="", help="settings of the method (yaml)")
    add("--dataset-config-file", default="", help="settings of the dataset (yaml)")
    add("--trainer", default="", help="name of the method, such as MaPLe")
    add("--backbone", default="", help="name of the CLIP model, such as ViT-B/16")
    add("--head", default="", help="name of the head, for trainers that have one")
    add("--eval-only", action="store_true", help="test only")
    add("--model-dir", default="", help="folder of a run, to test what it learned")
    add("--load-epoch", type=int, help="epoch whose checkpoint is tested; by default the best or last")
    add("--no-train", action="store_true", help="build everything, and stop")
    add("--plugin", action="append", default=[], help="module or file that registers more; may be repeated")
    add("opts", nargs=argparse.REMAINDER, default=None, help="KEY VALUE pairs that change the configuration")
    return parser


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
    # Classes that run through the text encoder at once: fewer take less memory and more time. 0: 2,048;
    # -1: all.
    cfg.MODEL.TEXT_CHUNK = 0
    cfg.TRAIN.CUDA_GRAPHS = "auto"  # `auto`: replays the training step on a GPU where it can; `off`: never
    for name in TRAINER_REGISTRY.registered_names():
        settings = getattr(TRAINER_REGISTRY.get(name), "settings", None)
        if settings is not None:
            cfg.TRAINER[name.upper()] = CfgNode({"PREC": "fp32", **settings})


def reset_cfg(cfg, args: argparse.Namespace) -> None:
    """Writes the flags of the command line into `cfg`.

    Raises:
        ValueError: a flag of several words has taken the KEY VALUE options behind it.
    """
    for flag in ("source_domains", "target_domains", "transforms"):
        keys = [word for word in getattr(args, flag) or () if "." in word and word.split(".")[0] in cfg]
        if keys:
            raise UserError(
                f"--{flag.replace('_', '-')} takes all words up to the next flag, and so {keys[0]!r}. Put "
                "another flag, such as --seed, between it and the KEY VALUE options."
            )
    if args.root:
        cfg.DATASET.ROOT = args.root
    if args.output_dir:
        cfg.OUTPUT_DIR = args.output_dir
    if args.resume:
        cfg.RESUME = args.resume
    if args.seed is not None and args.seed >= 0:
        cfg.SEED = args.seed
    if args.source_domains:
        cfg.DATASET.SOURCE_DOMAINS = args.source_domains
    if args.target_domains:
        cfg.DATASET.TARGET_DOMAINS = args.target_domains
    if args.transforms:
        cfg.INPUT.TRANSFORMS = args.transforms
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer
    if args.backbone:
        cfg.MODEL.BACKBONE.NAME = args.backbone
    if args.head:
        cfg.MODEL.HEAD.NAME = args.head


def setup_cfg(args: argparse.Namespace):
    """Defaults, then the dataset's file, the method's file, the flags, and `opts`.

    Without a dataset, the embedded one is taken; for it, the method's file is `shapes.yaml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key or the trainer is not known, or a value does not fit.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for flag in PATH_FLAGS:
        setattr(args, flag, os.path.expanduser(getattr(args, flag) or ""))
    dataset_file, config_file = args.dataset_config_file, args.config_file
    if not dataset_file and "DATASET.NAME" not in args.opts:
        dataset_file = str(ROOT / "configs" / "datasets" / f"{DEFAULT_DATASET}.yaml")
        own_file = ROOT / "configs" / "trainers" / str(args.trainer) / f"{DEFAULT_DATASET}.yaml"
        if not config_file and own_file.exists():
            config_file = str(own_file)
        args.dataset_config_file, args.config_file = dataset_file, config_file  # what is printed and recorded
    for file in (dataset_file, config_file):
        if file:
            cfg.merge_from_file(file)
    reset_cfg(cfg, args)
    cfg.merge_from_list(args.opts)
    for key in PATH_KEYS:
        *sections, name = key.split(".")
        section = functools.reduce(getattr, sections, cfg)
        if isinstance(section[name], str):
            section[name] = os.path.expanduser(section[name])
    if cfg.SEED is None or cfg.SEED >= 2**32:
        raise UserError(f"SEED is {cfg.SEED}; allowed is less than 2**32, or a negative number for none.")
    if not cfg.TRAINER.NAME:
        raise UserError(f"Give --trainer, one of {', '.join(TRAINER_REGISTRY.registered_names())}.")
    TRAINER_REGISTRY.get(cfg.TRAINER.NAME)  # an unknown name fails now, and not after the data was read
    if args.model_dir and not Path(args.model_dir).is_dir():
        raise MissingFileError(f"--model-dir {args.model_dir}: there is no such folder.")
    cfg.freeze()
    return cfg
