"""Reads the logs of runs without a `result.json`: this project's, the reference's, and others' on Dassl.

All of them print their arguments, the whole configuration, and `=> result` with a line for each metric. What
a run was is taken from there; the folder's name only helps out where an old log does not say.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from experiments.results.benchmarks import stem_of
from experiments.results.result_file import Result, Training, trained_by_path
from parse_test_res import read_result

ARGUMENTS, CONFIG, END = "** Arguments **", "** Config **", "Collecting env info"
LEARNED = re.compile(r"^Learned parameters: ([\d,]+)$")
SAMPLE = re.compile(r"^Sample of .*; sha256 ([0-9a-f]{64})$")
TOTAL = re.compile(r"^\* total: ([\d,]+)$")
TORCH = re.compile(r"^PyTorch(?: version)?: (\S+)$")


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
        raise ValueError(f"{folder}: its log holds no configuration of a run.")
    return runs[0]


def _read_log(path: Path) -> Result | None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
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
    dataset_file = _given(arguments.get("dataset_config_file"))
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
        source="log",
    )
    if not trainer.startswith("Zeroshot"):
        if arguments.get("eval_only") == "True":
            model = _given(arguments.get("model_dir"))
            run = replace(run, trained_on=trained_by_path(model, dataset, classes, shots, seed))
        else:
            sample = _last(SAMPLE, stripped) or ""
            run = replace(run, trained_on=Training(dataset, classes, shots, seed, sample))
    return replace(
        run,
        accuracy=read_result(str(path)),
        macro_f1=read_result(str(path), "macro_f1"),
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


def _given(value: str | None) -> str:
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
    file = _given(arguments.get("config_file"))
    if file or "config_file" in arguments:
        return Path(file).stem
    return folder.parent.name if re.fullmatch(r"seed\d+", folder.name) else ""
