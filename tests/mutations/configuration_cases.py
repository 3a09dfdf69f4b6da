"""Mutated configurations: files of yaml, and options."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.config.influence import flat
from experiments.configuration import build_parser, setup_cfg
from trainers.configuration import extend_cfg

from .mutate import NUMBERS, VALUES, mutated_text, near
from .nonsense import check_settings

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "trainers" / "MaPLe" / "vit_b16_c2_ep5_batch4_2ctx.yaml"


@functools.cache
def default() -> Any:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


def option(rng: random.Random, keys: list[str]) -> list[str]:
    """A key of the configuration, and a value that is odd or near to what it is."""
    settings = flat(default())
    key = rng.choice(keys)
    value = rng.choice((rng.choice(VALUES), rng.choice(NUMBERS), near(rng, settings[key])))
    if isinstance(settings[key], (list, tuple)) and rng.random() < 0.6:
        value = [rng.choice((*VALUES, *settings[key], *NUMBERS)) for _ in settings[key]]
    return [key, str(value)]


def configuration(rng: random.Random, folder: Path, marker: Path) -> None:
    """A method's yaml file, with bases, aliases, tags and options."""
    lines = CONFIG.read_text().splitlines(keepends=True)
    base = next(line.split(":")[1].strip(' "\n') for line in lines if line.startswith("_BASE_"))
    above = f"_BASE_: {(CONFIG.parent / base).resolve()}\n"
    text = above + "".join(line for line in lines if not line.startswith("_BASE_"))
    kind = rng.choice(("text", "text", "text", "base", "alias", "option", "option", "tag"))
    options: list[str] = []
    if kind == "text":
        for _ in range(rng.choice((1, 1, 3))):
            text = mutated_text(rng, text)
    elif kind == "base":
        other = rng.choice(
            ("own.yaml", "[own.yaml, own.yaml]", "7", "..", "/dev/null", "[]", '"a\\0b"', "&a [*a]")
        )
        text = text.replace(above, f"_BASE_: {other}\n")
    elif kind == "alias":
        names = [f"K{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
        doubling = "\n".join(["SEED: &a0 [1, 1]", *names, text])
        shared = "X: &x {LR: 0.002}\nOPTIM: *x\n"
        text = rng.choice((doubling, "TRAINER: &a {MAPLE: *a}", "SEED: &a [*a]", shared, "[" * 5000))
    elif kind == "tag":
        text += rng.choice(
            (
                f"\nOUTPUT_DIR: !!python/object/apply:os.system ['touch {marker}']\n",
                "\nOUTPUT_DIR: !!str 7\n",
                "\nSEED: !!binary aGVsbG8=\n",
                "\nVERBOSE: !!timestamp 2001-12-14\n",
            )
        )
    else:
        options = option(rng, [key for key in sorted(flat(default())) if key != "OUTPUT_DIR"])
    (folder / "own.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    words = ["--trainer", "MaPLe", "--config-file", str(folder / "own.yaml"), "DATASET.ROOT", str(folder)]
    cfg = setup_cfg(build_parser().parse_args([*words, *options]))
    check_settings(cfg)
    print(cfg)
