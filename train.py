"""Command line → config → trainer → train or test. The flags are Dassl's: `python train.py --help`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from yacs.config import CfgNode

import datasets  # noqa: F401  (registers the datasets)
import trainers  # noqa: F401  (registers the methods)
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger
from datasets.own import ClassNames
from experiments.jobs import IN_USE, LOCK_FILE
from experiments.record import Record

ROOT = Path(__file__).resolve().parent
OWN_CODE = {"clip", "dassl", "datasets", "experiments", "trainers", "train.py"}
DEFAULT_DATASET = "shapes"  # embedded: needs no download


def print_args(args: argparse.Namespace, cfg) -> None:
    print("***************\n** Arguments **\n***************")
    for key in sorted(vars(args)):
        print(f"{key}: {vars(args)[key]}")
    print("************\n** Config **\n************")
    print(cfg)


def reset_cfg(cfg, args: argparse.Namespace) -> None:
    """Puts the flags that were given into `cfg`."""
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


def extend_cfg(cfg) -> None:
    """Adds the keys that datasets and trainers of this project read; a trainer's `settings` say its own."""
    cfg.DATASET.ROOT = "data"
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
    cfg.DATASET.FEW_SHOT_LIST = ""  # the few_shot.json of a run, to train on the same images
    cfg.DATASET.REBUILD_INDEX = False  # lists the folders of images anew, whatever an index on disk says
    cfg.DATASET.OWN = CfgNode()  # own data, see configs/datasets/folder.yaml, csv.yaml and hub.yaml
    cfg.DATASET.OWN.PATH = ""
    cfg.DATASET.OWN.TEMPLATE = "a photo of a {}."
    cfg.DATASET.OWN.CLASS_NAMES = ClassNames(new_allowed=True)
    cfg.DATASET.OWN.CLASS_LIST = []
    cfg.DATASET.OWN.NOVEL_CLASSES = []
    cfg.DATASET.OWN.SPLIT = [0.5, 0.2, 0.3]
    cfg.DATASET.OWN.PATH_COLUMN = "path"
    cfg.DATASET.OWN.LABEL_COLUMN = "label"
    cfg.DATASET.OWN.SPLIT_COLUMN = "split"
    cfg.DATASET.OWN.SUBSET = ""
    cfg.DATASET.OWN.REVISION = ""
    cfg.MODEL.BACKBONE.PATH = ""  # a file of CLIP weights, instead of the ones that NAME stands for
    # Classes that run through the text encoder at once in training, for less memory and more time;
    # 0: as many as there is memory for, -1: all.
    cfg.MODEL.TEXT_CHUNK = 0
    cfg.TRAIN.CUDA_GRAPHS = "auto"  # on a GPU, replays the training step where it can; off: never
    for name in TRAINER_REGISTRY.registered_names():
        settings = getattr(TRAINER_REGISTRY.get(name), "settings", None)
        if settings is not None:
            cfg.TRAINER[name.upper()] = CfgNode({"PREC": "fp32", **settings})


def setup_cfg(args: argparse.Namespace):
    """Defaults, then the dataset's file, the method's file, the flags, and `opts`.

    Without a dataset, the embedded one is taken; for it, the method's file is `shapes.yaml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key or the trainer is not known, or a value does not fit.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
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
    if cfg.SEED >= 2**32:
        raise ValueError(f"SEED is {cfg.SEED}; allowed is less than 2**32, or a negative number for none.")
    if not cfg.TRAINER.NAME:
        raise ValueError(f"Give --trainer, one of {', '.join(TRAINER_REGISTRY.registered_names())}.")
    TRAINER_REGISTRY.get(cfg.TRAINER.NAME)  # an unknown name is said now, and not after the data was read
    if args.model_dir and not Path(args.model_dir).is_dir():
        raise FileNotFoundError(f"--model-dir {args.model_dir}: there is no such folder.")
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> None:
    """Trains and tests, or only tests (`--eval-only`), as `args` say."""
    if args.seeds:
        return _train_together(args)
    cfg = setup_cfg(args)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True

    with _kept_for_a_run(cfg.OUTPUT_DIR):
        print_args(args, cfg)
        print("Collecting env info ...")
        print(f"** System info **\n{collect_env_info()}\n")
        trainer = build_trainer(cfg)
        record = Record(trainer, args, sys.argv)
        if args.eval_only:
            if trainer.get_model_names() and not args.model_dir:
                raise ValueError("--eval-only tests what a run has learned: give its folder as --model-dir.")
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
            trainer.test()
        elif not args.no_train:
            _check_processes(trainer)
            trainer.train()
        if not args.no_train:
            record.write()


def _train_together(args: argparse.Namespace) -> None:
    """Trains and tests several seeds in this process, each as if it ran by itself."""
    from experiments.seeds import check_together, log_of_seed, of_each_seed  # here, for upstream Dassl's sake
    from trainers.seeds_together import Seed, SeedsTogether

    runs = [(own, setup_cfg(own)) for own in of_each_seed(args, one_of_several=_rank() is not None)]
    check_together(runs)
    if torch.cuda.is_available() and runs[0][1].USE_CUDA:
        torch.backends.cudnn.benchmark = True
    with contextlib.ExitStack() as kept:
        for _, cfg in runs:
            kept.enter_context(_no_trace_if_refused(cfg.OUTPUT_DIR))
            kept.enter_context(_alone_in(cfg.OUTPUT_DIR))
        environment = f"** System info **\n{collect_env_info()}\n"
        records = {}

        def built() -> Iterator[Seed]:
            for own, cfg in runs:
                seed = Seed(cfg.SEED, kept.enter_context(log_of_seed(cfg.SEED, cfg.OUTPUT_DIR)))
                with seed.at_work():
                    print(f"Setting fixed seed: {cfg.SEED}")
                    set_random_seed(cfg.SEED)
                    print_args(own, cfg)
                    print(environment)
                    seed.trainer = build_trainer(cfg)
                    records[cfg.SEED] = Record(seed.trainer, own, sys.argv)
                yield seed

        together = SeedsTogether(built())
        if not args.no_train:
            together.train(finished=lambda seed: records[seed.number].write())


@contextlib.contextmanager
def _kept_for_a_run(folder: str) -> Iterator[None]:
    """The log and the lock of a run; of several processes, the first one has them."""
    if _rank():
        yield
        return
    with _log_of_a_run(folder), _alone_in(folder):
        yield


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Keeps the folder for this run, which ends with its process, however that ends.

    Raises:
        BlockingIOError: another run writes into it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(folder) / LOCK_FILE, timeout=0):
            yield
    except Timeout:
        raise BlockingIOError(
            f"--output-dir {folder} is in use: another run writes into it. Wait, or give another folder."
        ) from None


@contextlib.contextmanager
def _log_of_a_run(folder: str) -> Iterator[None]:
    """Prints into `<folder>/log.txt`, too."""
    stdout = sys.stdout
    with _no_trace_if_refused(folder):
        setup_logger(folder)
        try:
            yield
        finally:
            sys.stdout = stdout
            setup_logger(None)


@contextlib.contextmanager
def _no_trace_if_refused(folder: str) -> Iterator[None]:
    """A run that is refused before it begins leaves no log behind."""
    path = Path(folder)
    before = _entries(path)
    made = [place for place in (path, *path.parents) if not place.exists()]
    refused = False
    try:
        yield
    except (ValueError, OSError) as error:
        refused = _raised_on_purpose(error) and not isinstance(
            error, BlockingIOError
        )  # those files are not ours
        raise
    finally:
        new = _entries(path) - before
        own = {file for file in new if file.parent == path and file.name.startswith(("log.txt", LOCK_FILE))}
        if refused and new == own:
            for file in own:
                file.unlink()
            for place in made:
                with contextlib.suppress(OSError):  # not empty, or never made
                    place.rmdir()


def _entries(folder: Path) -> set[Path]:
    """What a run may have written: logs beside folders of checkpoints."""
    return {*folder.glob("*"), *folder.glob("*/*")}


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
    add("--seed", type=int, default=-1, help="seed of everything random; not seeded if negative")
    add(
        "--seeds",
        type=int,
        nargs="+",
        help="several seeds, trained together in this process; --output-dir holds {seed} then",
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
        ValueError: the file is called like a module that is in use.
    """
    path = Path(name)
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise FileNotFoundError(f"--plugin {name}: there is no such file.")
        if path.stem in sys.modules:
            raise ValueError(
                f"--plugin {name}: a module {path.stem} is loaded already; give the file another name."
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package that it should be in
        found = None
    if found is None:
        raise FileNotFoundError(
            f"--plugin {name}: there is no such module; for a file, give a path that ends in .py."
        )
    importlib.import_module(name)


def _raised_on_purpose(error: BaseException) -> bool:
    """Whether an error is this project's word to its user, and not a fault in some code below."""
    if isinstance(error, BrokenPipeError):
        return False
    if isinstance(error, OSError) and error.filename is not None:
        return True  # a path that cannot be read or written
    if type(error).__module__.partition(".")[0] in OWN_CODE:
        return True  # also where a data loader's worker raised it
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in OWN_CODE


def command_line(argv: Sequence[str] | None = None) -> int:
    """Runs `main` for the command line; returns the exit code: 2 for what the user can mend.

    Started by torchrun, it is one of several processes, of which the first to fail says why.
    """
    if _rank() is None:
        return _run(build_parser().parse_args(argv))
    from dassl.utils.torchrun import one_of_several  # here, as upstream Dassl has no such module

    with one_of_several():
        with contextlib.redirect_stderr(io.StringIO() if _rank() else sys.stderr):
            args = build_parser().parse_args(argv)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        for plugin in args.plugin:
            load_plugin(plugin)
        main(args)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except BlockingIOError as error:
        _say(error)
        return IN_USE
    except (ValueError, OSError, FloatingPointError) as error:
        if not _raised_on_purpose(error):
            raise
        _say(error)
        return 2
    except KeyboardInterrupt as stop:
        _say(str(stop) or "Interrupted.")
        return 130
    return 0


def _say(error: object) -> None:
    if _rank() is not None:
        from dassl.utils.torchrun import fails_first

        if not fails_first():
            return
    print(f"train.py: {error}", file=sys.stderr)


def _rank() -> int | None:
    """Which process this is of those that torchrun started, from 0; None if it did not, or only one."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def _check_processes(trainer) -> None:
    """Refuses a training that several processes cannot share, also that of a trainer with its own `train`."""
    if _rank() is not None:
        from dassl.engine.sharing import check_shared_training

        check_shared_training(trainer)


if __name__ == "__main__":
    sys.exit(command_line())
