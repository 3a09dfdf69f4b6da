"""Reads the logs of runs without a `result.json`: this project's, the reference's, and others' on Dassl.

All of them print their arguments, the whole configuration, and `=> result` with a line for each metric. The
folder's name only helps out where an old log does not say. The reference's scripts tell the training of a
test by the path in `model_dir`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.results.benchmarks import LABELS, stem_of
from experiments.results.result_file import LOG, Result, Training
from experiments.run_folder import read_text
from prompted_clip.errors import MissingFileError, UserError

ARGUMENTS, CONFIG, END = "** Arguments **", "** Config **", "Collecting env info"
LEARNED = re.compile(r"^Learned parameters: ([\d,]+)$")
SAMPLE = re.compile(r"^Sample of .*; sha256 ([0-9a-f]{64})$")
TOTAL = re.compile(r"^\* total: ([\d,]+)$")
RESULT = "=> result"
FINISHED = ("Finish training", "Finished training")  # ours and Dassl's; and what some forks print
TRAINING = re.compile(r"^epoch \[\d+/\d+\]")
TORCH = re.compile(r"^PyTorch(?: version)?: (\S+)$")


def read_metric(fpath: str, keyword: str = "accuracy", test_log: bool = False) -> float | None:
    """The last test result in a log, in percent; None if there is none.

    A log of training counts from its end on, since before that it may hold results on validation data.

    Args:
        keyword: the line's name: accuracy, error, macro_f1.
        test_log: any result counts, that of an unfinished training too.
    """
    wanted = re.compile(rf"^\* {re.escape(keyword)}: (\d{{1,3}}(?:\.\d+)?)%")
    value, in_result, training = None, False, False
    if not os.path.isfile(fpath):  # a named pipe has no end
        raise MissingFileError(f"{fpath} is no file.")
    with open(fpath, encoding="utf-8", errors="replace") as file:
        for line in map(str.strip, file):
            if TRAINING.match(line):
                training, in_result = True, False
            elif line in FINISHED:
                training, in_result = False, False
            elif line == RESULT:
                in_result = True
            elif in_result and (test_log or not training) and (match := wanted.match(line)):
                value = float(match.group(1))
    return None if training and not test_log else value


def read_logs(folder: Path) -> Result:
    """The run whose `log.txt` and `log.txt-<time>` lie in a folder: of the newest log that has a result.

    Its `accuracy` is None if it has no result yet.

    Raises:
        ValueError: none of them is the log of such a run.
        OSError: a log cannot be read.
    """
    runs = []
    for log in sorted(folder.glob("log.txt*"), reverse=True):
        run = _read_log(log)
        if run is not None and run.accuracy is not None:
            return run
        runs += [run] if run is not None else []
    if not runs:
        raise UserError(f"{folder}: its log holds no configuration of a run.")
    return runs[0]


def _read_log(path: Path) -> Result | None:
    lines = read_text(path).splitlines()
    stripped = [line.strip() for line in lines]
    if CONFIG not in stripped:
        return None
    start = stripped.index(CONFIG)
    arguments = dict(line.split(":", 1) for line in stripped[:start] if ":" in line)
    arguments = {key: value.strip() for key, value in arguments.items()}
    config = _configuration(lines[start + 1 :])
    trainer = config.get("TRAINER.NAME") or arguments.get("trainer", "")
    if not trainer or not config.get("DATASET.NAME"):
        return None
    dataset_file = _text(arguments.get("dataset_config_file"))
    dataset = Path(dataset_file).stem if dataset_file else stem_of(config["DATASET.NAME"])
    classes = config.get("DATASET.SUBSAMPLE_CLASSES", "all")
    shots = _number(config.get("DATASET.NUM_SHOTS"), -1)
    seed = _seed(config, arguments, path.parent)
    run = Result(
        folder=path.parent,
        trainer=trainer,
        config=_config_stem(arguments, path.parent),
        dataset=dataset,
        classes=classes,
        shots=shots,
        seed=seed,
        split=config.get("TEST.SPLIT", "test"),
        backbone=config.get("MODEL.BACKBONE.NAME", ""),
        source=LOG,
    )
    if not trainer.startswith("Zeroshot"):
        if arguments.get("eval_only") == "True":
            model = _text(arguments.get("model_dir"))
            run = replace(run, trained_on=_training_of(model, dataset, classes, shots, seed))
        else:
            sample = _last(SAMPLE, stripped) or ""
            run = replace(run, trained_on=Training(dataset, classes, shots, seed, sample))
    return replace(
        run,
        accuracy=read_metric(str(path)),
        macro_f1=read_metric(str(path), "macro_f1"),
        total=_number(_last(TOTAL, stripped), None),
        learned_parameters=_number(_last(LEARNED, stripped), None),
        torch=_last(TORCH, stripped) or "",
    )


def _configuration(lines: list[str]) -> dict[str, str]:
    """The printed configuration by dotted keys. It is not quite YAML: texts stand there without quotes."""
    values: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in lines:
        if line.startswith(END):
            break
        match = re.match(r"^( *)([\w+.-]+):(.*)$", line)
        if match is None:
            continue
        depth = len(match[1])
        path = [step for step in path if step[0] < depth] + [(depth, match[2])]
        values[".".join(key for _, key in path)] = match[3].strip()
    return values


def _text(value: str | None) -> str:
    return "" if value in (None, "None") else str(value)


def _number(text, default):
    """An integer such as `1,200`; `default` if the text is none."""
    text = str(text).replace(",", "")
    return int(text) if re.fullmatch(r"-?\d+", text) else default


def _last(pattern: re.Pattern[str], lines: list[str]) -> str | None:
    return next((match[1] for line in reversed(lines) if (match := pattern.match(line))), None)


def _seed(config: dict[str, str], arguments: dict[str, str], folder: Path) -> int:
    seed = _number(config.get("SEED"), _number(arguments.get("seed"), -1))
    named = re.fullmatch(r"seed(\d+)", folder.name)
    return int(named[1]) if seed < 0 and named else seed


def _config_stem(arguments: dict[str, str], folder: Path) -> str:
    """Of `config_file`; a log without that line lies in `<config>/seed1`, as the reference's scripts do."""
    file = _text(arguments.get("config_file"))
    if file or "config_file" in arguments:
        return Path(file).stem
    return folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else ""


def _training_of(model_dir: str, dataset: str, classes: str, shots: int, seed: int) -> Training:
    """The training of a model, by its folder's path: a dataset, `shots_16` or `..._16shots`, `seed1`.

    What the path does not say is as in the test. A model of the dataset that is tested was trained on its
    base classes, unless all are tested.
    """
    parts = Path(model_dir).parts
    trained = next((part for part in reversed(parts) if part in LABELS), dataset)
    base = "train_base" in parts or (trained == dataset and classes in ("base", "new"))
    return Training(
        dataset=trained,
        classes="base" if base else "all",
        shots=_number_in(parts, r"shots_(\d+)|.*_(\d+)shots", int(shots)),
        seed=_number_in(parts, r"seed(\d+)", int(seed)),
    )


def _number_in(parts: Sequence[str], pattern: str, default: int) -> int:
    """The number in the last part that fits a pattern."""
    matches = [match for part in parts if (match := re.fullmatch(pattern, part))]
    return int(next(filter(None, matches[-1].groups()))) if matches else default
