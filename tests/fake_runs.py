"""Folders of runs that were never run: result.json, plans and logs with the accuracies that a test wants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.methods import method_of, read_methods
from experiments.results.benchmarks import ELEVEN
from experiments.results.published import published

CONFIGS = {"ZeroshotCLIP": "vit_b16", "CoOp": "vit_b16_ctxv1", "MaPLe": "vit_b16_c2_ep5_batch4_2ctx"}


def result(
    accuracy: float,
    dataset: str = "oxford_pets",
    classes: str = "base",
    seed: int = 1,
    trainer: str = "MaPLe",
    trained_on: Mapping[str, Any] | str | None = "",
    **changes: Any,
) -> dict[str, Any]:
    """What result.json holds. `trained_on` is a dataset; "" is the same one, with its base or all classes."""
    zero_shot = trainer.startswith("Zeroshot")
    shots = changes.get("shots", 16)
    if isinstance(trained_on, str):
        trained_on = {
            "dataset": trained_on or dataset,
            "classes": "all" if classes == "all" else "base",
            "shots": shots,
            "seed": seed,
            "sample_sha256": f"{seed:x}" * 64,
        }
    size = published()["test_sizes"].get(dataset, {}).get(classes, 1200)
    return {
        "format": 1,
        "finished": "2026-11-28T00:40:00+00:00",
        "trainer": trainer,
        "config": CONFIGS.get(trainer, "vit_b16"),
        "dataset": dataset,
        "dataset_config": dataset,
        "classes": classes,
        "split": "test",
        "shots": shots,
        "seed": seed,
        "backbone": "ViT-B/16",
        "eval_only": zero_shot or classes == "new",
        "model_dir": "",
        "trained_on": None if zero_shot else trained_on,
        "sample_sha256": "",
        "results": {"accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": accuracy - 1},
        "total": size,
        "correct": round(size * accuracy / 100),
        "per_class": [],
        "learned_parameters": 0 if zero_shot else 3555072,
        "epochs": 5,
        "resumed_from_epoch": 0,
        "seconds": {
            "total": 100.0,
            "training": 0.0 if zero_shot or classes == "new" else 80.0 + seed,
            "testing": 10.0,
        },
        "images_per_second": 120.0,
        "peak_memory_bytes": {"process": 2**30, "device": None if zero_shot else 3 * 2**30},
        "device": "NVIDIA H100 80GB HBM3",
        "processes": 1,
        "versions": {"python": "3.11.2", "torch": "2.15.0"},
        "commit": "d72648f0" * 5,
        "commit_is_clean": True,
        "command": ["train.py"],
        "identity": {"run": f"{seed:x}" * 64, "cell": "c" * 64, "parts": {}, "settings": {}},
        "changed": {},
        "settings": {},
        **changes,
    }


def write(folder: Path, content: Mapping[str, Any] | Sequence[Any], name: str = "result.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def base_to_novel_folder(output: Path, dataset: str, trainer: str, seed: int, classes: str) -> Path:
    step = "train_base" if classes == "base" and not trainer.startswith("Zeroshot") else f"test_{classes}"
    run = Path(dataset) / "shots_16" / trainer / CONFIGS.get(trainer, "vit_b16") / f"seed{seed}"
    return output / "base2new" / step / run


def published_base_to_novel(output: Path, trainers: Mapping[str, str], noise: float = 0.5) -> None:
    """All eleven datasets with three seeds each, planned and scattered around the published accuracies.

    Args:
        trainers: trainer -> name of its published numbers.
        noise: percentage points; seeds 1 to 3 have the published number, less and more noise.
    """
    jobs = []
    for trainer, name in trainers.items():
        method = method_of(read_methods(), trainer, CONFIGS.get(trainer, "vit_b16"))
        for dataset in ELEVEN:
            config = method.config("base2new", dataset, 16)
            for classes in ("base", "new"):
                number = published()["base2new"][name][dataset][classes]
                for seed, sign in ((1, 0), (2, -1), (3, 1)):
                    accuracy = number + (0 if trainer.startswith("Zeroshot") else sign * noise)
                    folder = base_to_novel_folder(output, dataset, trainer, seed, classes)
                    write(folder, result(accuracy, dataset, classes, seed, trainer, config=config))
                    place = {"folder": str(folder.relative_to(output)), "dataset": dataset, "seed": seed}
                    run = {"method": "", "trainer": trainer, "config": config}
                    jobs.append({**place, **run, "role": classes, "classes": classes})
    plan(output, jobs)


def random_cross_dataset(output: Path, trainer: str = "MaPLe", seed: int = 0) -> None:
    """The published source, targets and ImageNet's variants, planned, with noise."""
    random = np.random.default_rng(seed)
    config = "vit_b16_c2_ep5_batch4_2ctx_cross_datasets"
    for protocol in ("cross_dataset", "domain_generalisation"):
        jobs = []
        for dataset, number in published()[protocol][trainer].items():
            for run in (1, 2, 3):
                accuracy = number if dataset == "imagenet" else number + float(random.normal(0, 0.3))
                place = "imagenet" if dataset == "imagenet" else f"evaluation/{dataset}"
                content = result(accuracy, dataset, "all", run, trainer, trained_on="imagenet", config=config)
                write(output / place / f"seed{run}", content)
                role = "source" if dataset == "imagenet" else "target"
                job = {"folder": f"{place}/seed{run}", "dataset": dataset, "role": role, "seed": run}
                jobs.append({**job, "method": "", "config": config, "classes": "all", "source": "imagenet"})
        plan(output, jobs, protocol)


def plan(output: Path, jobs: Sequence[Mapping[str, Any]], protocol: str = "base2new") -> None:
    """A plan whose jobs lack what goes without saying."""
    usual = {"protocol": protocol, "method": "MaPLe", "trainer": "MaPLe", "config": CONFIGS["MaPLe"]}
    usual |= {"dataset": "oxford_pets", "shots": 16, "seed": 1, "trains": True, "curve": "", "value": None}
    write(
        output / "plans",
        {"format": 1, "protocol": protocol, "jobs": [{**usual, **job} for job in jobs]},
        f"{protocol}-1.json",
    )
