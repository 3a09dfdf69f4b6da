"""Command line → config → trainer → train or test. The flags are Dassl's: `python train.py --help`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from filelock import Timeout

from dassl.engine import build_trainer
from dassl.utils import collect_env_info, set_random_seed, setup_logger
from dassl.utils.logger import check_log
from dassl.utils.tools import remove_unfinished
from experiments.configuration import build_parser, reset_cfg, setup_cfg
from experiments.record import Record
from experiments.run_folder import IN_USE, LOCK_FILE, locked
from prompted_clip.console import run_command
from prompted_clip.errors import UserError
from trainers.configuration import extend_cfg, load_plugin, set_threads

__all__ = ["build_parser", "command_line", "extend_cfg", "load_plugin", "main", "reset_cfg", "setup_cfg"]

LOOK = 1.0  # seconds; a sweep on another machine that looks whether a run goes on holds its lock for a moment


def print_args(args: argparse.Namespace, cfg) -> None:
    print("***************\n** Arguments **\n***************")
    for key in sorted(vars(args)):
        print(f"{key}: {vars(args)[key]}")
    print("************\n** Config **\n************")
    print(cfg)


def main(args: argparse.Namespace) -> None:
    """Trains and tests, or only tests (`--eval-only`), as `args` say."""
    cfg = setup_cfg(args)
    set_threads(cfg)
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True

    with _log_and_lock(cfg.OUTPUT_DIR):
        print_args(args, cfg)
        print("Collecting env info ...")
        print(f"** System info **\n{collect_env_info()}\n")
        trainer = build_trainer(cfg)
        record = Record(trainer, args, sys.argv)
        if args.eval_only:
            if trainer.get_model_names() and not args.model_dir:
                raise UserError("--eval-only tests what a run has learned: give its folder as --model-dir.")
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
            record.identify()
            trainer.test()
        elif not args.no_train:
            _check_processes(trainer)
            record.identify()
            trainer.train()
        if not args.no_train:
            check_log()
            record.write()


@contextlib.contextmanager
def _log_and_lock(folder: str) -> Iterator[None]:
    """The log and the lock of a run; of several processes, rank zero has them."""
    if _rank():
        yield
        return
    with _logging_to(folder), locked(Path(folder), LOOK):
        remove_unfinished(folder)
        yield


@contextlib.contextmanager
def _logging_to(folder: str) -> Iterator[None]:
    """Prints into `<folder>/log.txt`, too."""
    stdout = sys.stdout
    with _removed_if_refused(folder):
        setup_logger(folder)
        try:
            yield
        finally:
            sys.stdout = stdout
            setup_logger(None)


@contextlib.contextmanager
def _removed_if_refused(folder: str) -> Iterator[None]:
    """Removes the log and the lock of a run that is refused before it begins."""
    path = Path(folder)
    before = _entries(path)
    made = [place for place in (path, *path.parents) if not place.exists()]
    refused = False
    try:
        yield
    except (UserError, OSError) as error:
        refused = not isinstance(error, Timeout)  # those files are not ours
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


def command_line(argv: Sequence[str] | None = None) -> int:
    """Runs `main` for the command line; returns the exit code: 2 for what the user has to mend first.

    Started by torchrun, it is one of several processes, of which the first to fail says why.
    """
    if _rank() is None:
        return _run(build_parser().parse_args(argv))
    from dassl.utils.torchrun import process_group  # here, as upstream Dassl has no such module

    with process_group():
        with contextlib.redirect_stderr(io.StringIO() if _rank() else sys.stderr):
            args = build_parser().parse_args(argv)
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    def run() -> int | None:
        for plugin in args.plugin:
            load_plugin(plugin)
        try:
            main(args)
        except Timeout as error:
            folder = Path(error.lock_file).parent
            print(
                f"train.py: --output-dir {folder} is in use: another run writes into it. "
                "Wait, or give another folder.",
                file=sys.stderr,
            )
            return IN_USE
        return None

    return run_command("train.py", run, _is_first_to_fail)


def _is_first_to_fail() -> bool:
    """Whether this process says why it ends: of those of torchrun the first to fail."""
    if _rank() is None:
        return True
    from dassl.utils.torchrun import is_first_to_fail

    return is_first_to_fail()


def _rank() -> int | None:
    """Which process this is of those that torchrun started, from 0; None if it did not, or only one."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def _check_processes(trainer) -> None:
    """Refuses a training that several processes cannot share, also that of a trainer with its own `train`."""
    if _rank() is not None:
        from dassl.engine.ddp import check_ddp

        check_ddp(trainer)


if __name__ == "__main__":
    sys.exit(command_line())
