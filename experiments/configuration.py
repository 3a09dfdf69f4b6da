"""Command line → configuration: the flags of `train.py`, the files that they name, and what plugins add."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path

import datasets  # noqa: F401  (registers the datasets)
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from prompted_clip.errors import MissingFileError, UserError
from trainers.configuration import extend_cfg  # importing trainers registers the methods

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
