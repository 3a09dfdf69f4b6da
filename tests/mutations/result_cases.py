"""Mutated folders of runs: results, plans and logs, of which reports are made."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fake_runs import CONFIGS, result

import parse_test_res
from experiments.methods import read_methods
from experiments.report.report import make_report
from experiments.results.runs import gather
from experiments.run_folder import HOLDER_FILE
from scripts.report import PRINTED, WRITTEN

from .mutate import NAMES, as_json, mutated_json, mutated_text
from .nonsense import check, check_runs, check_text

SETTINGS = {"OPTIM.LR": 0.0035, "TRAINER.MAPLE.N_CTX": 2, "SEED": 1, "OPTIM.MAX_EPOCH": 5}


def results(rng: random.Random, folder: Path, marker: Path) -> None:
    """Results, some of other settings, and plans: the report in all formats."""
    for seed in (1, 2):
        for classes in ("base", "new"):
            cell, learning_rate = rng.choice((("c", 0.0035), ("c", 0.0035), ("d", 0.002)))
            identity: dict[str, Any] = {"run": f"{seed}" * 64, "cell": cell * 64, "parts": {"model": cell}}
            content: Mapping[str, Any] = result(80.0, "dtd", classes, seed)
            content = {
                **content,
                "identity": {**identity, "settings": {**SETTINGS, "OPTIM.LR": learning_rate}},
            }
            place = folder / classes / f"seed{seed}"
            place.mkdir(parents=True)
            text = mutated_json(rng, content) if rng.random() < 0.5 else as_json(content)
            (place / "result.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    if rng.random() < 0.4:
        (folder / "plans").mkdir()
        head = {"format": 1, "protocol": "base2new"}
        (folder / "plans" / "base2new-1.json").write_text(
            mutated_json(rng, {**head, "jobs": [_job()]}), errors="surrogatepass"
        )
    if rng.random() < 0.3:
        place = folder / "unfinished" / "seed1"
        place.mkdir(parents=True)
        (place / HOLDER_FILE).write_text(mutated_json(rng, ["host", 1, "2"]), errors="surrogatepass")
        (place / "error.txt").write_text(rng.choice(NAMES), errors="surrogatepass")
        (place / "log.txt").write_text(rng.choice(NAMES), errors="surrogatepass")
    if rng.random() < 0.2:
        (folder / "pipe").mkdir()
        os.mkfifo(folder / "pipe" / rng.choice(("result.json", "log.txt", HOLDER_FILE, "error.txt")))
    gathered = gather([folder], read_methods())
    check_runs(gathered.runs)
    report = make_report(gathered, "accuracy", "command")
    for name, render in PRINTED.values():
        check_text(render(report), name)
    files = {**WRITTEN["csv"], **(WRITTEN["html"] if rng.random() < 0.2 else {})}  # whose figures take long
    for name, render in files.items():
        check_text(render(report), name)
    if any("is not JSON" in warning or "lacks" in warning for warning in gathered.warnings):
        check(len(gathered.warnings) < 30, "a warning for each of many")


def _job() -> dict[str, Any]:
    names = {"protocol": "base2new", "method": "MaPLe", "trainer": "MaPLe", "config": CONFIGS["MaPLe"]}
    place = {"folder": "base/seed1", "dataset": "dtd", "role": "base", "classes": "base"}
    return {**names, **place, "shots": 16, "seed": 1, "trains": True, "curve": "", "value": None}


def logs(rng: random.Random, folder: Path, marker: Path) -> None:
    """Logs that parse_test_res.py reads, and the folders that they lie in."""
    log = "Finish training\n=> result\n* total: 1,000\n* accuracy: 81.5%\n* error: 18.5%\n* macro_f1: 81.0%\n"
    for seed in (1, 2, 3):
        name = f"seed{rng.choice((seed, seed, seed, '20240601', '999999999999', '-1', 'x', '', '9' * 200))}"
        (folder / name).mkdir(exist_ok=True)
        text = log
        for _ in range(rng.choice((0, 1, 3))):
            text = mutated_text(rng, text)
        (folder / name / "log.txt").write_text(text, encoding="utf-8", errors="surrogatepass")
    if rng.random() < 0.1:
        (folder / "seed9").mkdir(exist_ok=True)
        os.mkfifo(folder / "seed9" / "log.txt")
    words = [str(folder)]
    if rng.random() < 0.3:
        words += [rng.choice(("--keyword", "--ci95", "--test-log")), rng.choice(("error", "no", ""))]
    try:
        code = parse_test_res.main(words)
    except SystemExit as stop:  # of argparse
        code = stop.code
    check(code in (0, 2), f"exit code {code}")
