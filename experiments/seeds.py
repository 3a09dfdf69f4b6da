"""`train.py --seeds 1 2 3 --output-dir runs/seed{seed}`: the run of each seed, and its log."""

from __future__ import annotations

import copy
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import Logger
from trainers.clip_trainer import CLIPPromptTrainer

PLACE = "{seed}"  # stands for the seed in --output-dir, --resume, and options


def of_each_seed(args: Namespace, one_of_several: bool) -> list[Namespace]:
    """The flags of each seed's run, `{seed}` replaced by the seed.

    Args:
        one_of_several: whether torchrun started this process.

    Raises:
        ValueError: flags that do not go with `--seeds`.
    """
    given = f"--seeds {' '.join(map(str, args.seeds))}"
    if one_of_several:
        raise ValueError(f"{given}: several processes share one seed; start train.py without torchrun.")
    if args.eval_only:
        raise ValueError(f"{given} trains, and --eval-only tests; test each seed by itself, with --seed.")
    if args.seed >= 0:
        raise ValueError(f"{given} and --seed {args.seed} are given; give one of them.")
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise ValueError(f"{given}: allowed are seeds from 0, each once.")
    for flag, folder in (("--output-dir", args.output_dir), ("--resume", args.resume)):
        if PLACE not in folder and (folder or flag == "--output-dir"):
            raise ValueError(
                f"{given}: {flag} is {folder!r}; it has to hold {PLACE}, as in runs/seed{PLACE}, "
                "so that each seed has a folder of its own."
            )
    return [_of_seed(args, seed) for seed in args.seeds]


def _of_seed(args: Namespace, seed: int) -> Namespace:
    own = copy.copy(args)
    own.seed = seed
    own.output_dir, own.resume = (each.replace(PLACE, str(seed)) for each in (args.output_dir, args.resume))
    own.opts = [each.replace(PLACE, str(seed)) for each in args.opts]
    return own


def check_together(runs: Sequence[tuple[Namespace, Any]]) -> None:
    """Refuses what cannot be trained together, before anything is written.

    Args:
        runs: the flags and the configuration of each seed.

    Raises:
        ValueError: the trainer takes its steps in a way of its own, or options undo what the flags say.
    """
    for own, cfg in runs:
        set_by_flags = {"SEED": own.seed, "OUTPUT_DIR": own.output_dir}
        for key, value in set_by_flags.items():
            if cfg[key] != value:
                raise ValueError(f"{key} is {cfg[key]!r}, but --seeds sets it to {value!r}; leave it out.")
        trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        if not (issubclass(trainer, CLIPPromptTrainer) and trainer.can_share_batches()):
            raise ValueError(
                f"TRAINER.NAME is {cfg.TRAINER.NAME}, which takes its steps in a way of its own: --seeds "
                "cannot train it together. Train each seed by itself, with --seed."
            )


@contextmanager
def log_of_seed(seed: int, folder: str) -> Iterator[TextIO]:
    """A stream into `<folder>/log.txt`, and to the terminal in lines that begin with the seed."""
    with redirect_stdout(cast(TextIO, PrefixedLines(sys.stdout, f"seed {seed}: "))):
        log = Logger(str(Path(folder) / "log.txt"))
    with log:
        yield cast(TextIO, log)


class PrefixedLines:
    """Writes to a stream; each line begins with a prefix."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self.stream = stream
        self.prefix = prefix
        self.line_begins = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write(f"{self.prefix}{line}" if self.line_begins else line)
            self.line_begins = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)  # flush(), encoding, isatty(), ...
