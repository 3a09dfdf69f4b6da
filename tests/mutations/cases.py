"""The readers of this project, each with a mutated input. A case raises what the reader raises, or Nonsense."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import pickle
import random
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fake_runs import plan, result, write
from helpers import golden_script
from PIL import Image

import parse_test_res
from dassl.config import get_cfg_default
from dassl.config.influence import flat
from dassl.data.class_names import UNPRINTED
from dassl.data.datasets import build_dataset
from dassl.engine import build_trainer
from dassl.utils import read_image
from datasets.archives import unpack
from experiments.configuration import build_parser, extend_cfg, setup_cfg
from experiments.methods import read_methods
from experiments.report.report import make_report
from experiments.results.runs import gather
from prompted_clip import load_model
from scripts.report import PRINTED, WRITTEN

from .mutate import NAMES, VALUES, mutated, mutated_bytes, mutated_text
from .outcome import Nonsense

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"
CLASSES = ("bear", "cat", "zebra")
Case = Callable[[random.Random, Path, Path], None]


def check(holds: bool, words: str) -> None:
    if not holds:
        raise Nonsense(words)


# --- configurations


def configuration(rng: random.Random, folder: Path, marker: Path) -> None:
    """A method's yaml file, with bases, aliases and options."""
    text = (ROOT / CONFIG).read_text()
    kind = rng.choice(("text", "text", "base", "alias", "option", "tag"))
    options: list[str] = []
    if kind == "text":
        text = mutated_text(rng, text)
    elif kind == "base":
        text = f"_BASE_: {rng.choice(['own.yaml', '[own.yaml, own.yaml]', '7', '..', '/dev/null'])}\n{text}"
    elif kind == "alias":
        lines = [
            "SEED: &a0 [1, 1]",
            *(f"K{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)),
        ]
        text = "\n".join(rng.choice(([*lines, text], ["TRAINER: &a {MAPLE: *a}"], ["SEED: &a [*a]"])))
    elif kind == "tag":
        text += f"\nOUTPUT_DIR: !!python/object/apply:os.system ['touch {marker}']\n"
    else:
        keys = [each for each in sorted(flat(_default())) if each != "OUTPUT_DIR"]
        options = [rng.choice(keys), str(rng.choice(VALUES))]
    (folder / "own.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    words = ["--trainer", "MaPLe", "--config-file", str(folder / "own.yaml"), "DATASET.ROOT", str(folder)]
    cfg = setup_cfg(build_parser().parse_args([*words, *options]))
    for key, value in flat(cfg).items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        finite = all(math.isfinite(each) for each in numbers if isinstance(each, float))
        check(finite, f"{key} is {value}")
    print(cfg)


@functools.cache
def _default() -> Any:
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


# --- data


def _photos(folder: Path) -> Path:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (8, 8), (60 * label, 40 * index, 9)).save(folder / name / f"{index}.png")
    return folder


def _dataset(root: Path, name: str, *options: object) -> Any:
    cfg = _default().clone()
    cfg.merge_from_list(
        ["DATASET.ROOT", str(root), "DATASET.NAME", name, "SEED", 1, "DATASET.NUM_SHOTS", 2, *options]
    )
    dataset = build_dataset(cfg)
    items = [*dataset.train_x, *(dataset.val or []), *dataset.test]
    names = {item.label: item.classname for item in items}
    check(all(name.strip() and not UNPRINTED.search(name) for name in names.values()), f"names {names}")
    same = len({name.casefold().replace("_", " ").split().__str__() for name in names.values()})
    check(same == len(names), f"two classes of one name: {names}")
    inside = os.path.realpath(root)
    check(
        all(os.path.realpath(item.impath).startswith(inside) for item in items),
        "an image outside of the root",
    )
    parts = [{item.impath for item in part or []} for part in (dataset.train_x, dataset.val, dataset.test)]
    check(sum(map(len, parts)) == len(set().union(*parts)), "an image in two parts")
    check(len(parts[2]) == len(dataset.test), "a test image twice")
    return dataset


def split_file(rng: random.Random, folder: Path, marker: Path) -> None:
    """A split file in the form of the published ones."""
    _photos(folder / "dtd" / "images")
    parts = {
        part: [
            [f"{name}/{index}.png", label, name] for label, name in enumerate(CLASSES) for index in indices
        ]
        for part, indices in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4, 5)))
    }
    text = json.dumps(mutated(rng, parts))
    text = mutated_text(rng, text) if rng.random() < 0.3 else text
    path = folder / "dtd" / "split_zhou_DescribableTextures.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    _dataset(folder, "DescribableTextures")


def table(rng: random.Random, folder: Path, marker: Path) -> None:
    """A table of own photos."""
    _photos(folder / "photos")
    lines = ["path,label,split"]
    for name in CLASSES:
        for index, part in enumerate(("train", "train", "train", "val", "test", "test")):
            lines.append(f"photos/{name}/{index}.png,{name},{part}")
    content = "\n".join(lines) + "\n"
    for _ in range(rng.choice((1, 2))):
        content = mutated_text(rng, content)
    (folder / "own.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    _dataset(folder, "csv", "DATASET.OWN.PATH", "own.csv")


def own_folder(rng: random.Random, folder: Path, marker: Path) -> None:
    """Folders of photos: odd names, odd files, links, pipes."""
    root = _photos(folder / "photos")
    place = root / rng.choice(CLASSES)
    for _ in range(rng.choice((1, 2))):
        change = rng.choice(("rename", "file", "link", "pipe", "empty", "damage", "settings"))
        if change == "rename" and place.exists():
            name = (
                rng.choice(NAMES).replace("/", ":").replace("\0", "")[:60].encode("utf-8", "surrogateescape")
            )
            target = os.path.join(os.fsencode(root), name)
            if name not in (b"", b".", b"..") and not os.path.exists(target):
                os.rename(os.fsencode(place), target)
        elif change == "file":
            (root / rng.choice(("0.png", "notes.txt", "a.jfif"))).write_bytes(rng.randbytes(40))
        elif change == "link" and place.exists():
            (place / "link.png").symlink_to(rng.choice(("/etc/passwd", "..", "link.png")))
        elif change == "pipe" and place.exists():
            os.mkfifo(place / f"pipe{rng.random()}.png")
        elif change == "empty":
            (root / f"empty{rng.random()}").mkdir()
        elif change == "damage" and (place / "0.png").exists():
            (place / "0.png").write_bytes(mutated_bytes(rng, (place / "0.png").read_bytes()))
    options: list[object] = []
    if rng.random() < 0.3:
        key = rng.choice(("CLASS_LIST", "NOVEL_CLASSES", "SPLIT", "TEMPLATE", "PATH"))
        options = [f"DATASET.OWN.{key}", str(rng.choice(VALUES))]
    _dataset(root, "folder", *options)


def few_shot_list(rng: random.Random, folder: Path, marker: Path) -> None:
    """The few_shot.json of a run."""
    root = _photos(folder / "photos")
    sample = _dataset(root, "folder").sample
    sample.save(str(folder / "few_shot.json"))
    content = json.loads((folder / "few_shot.json").read_text())
    (folder / "few_shot.json").write_text(json.dumps(mutated(rng, content)), errors="surrogatepass")
    _dataset(root, "folder", "DATASET.FEW_SHOT_LIST", str(folder / "few_shot.json"))


def image(rng: random.Random, folder: Path, marker: Path) -> None:
    """The bytes of an image, and extreme shapes and modes."""
    kind = rng.choice(("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "shape", "deep"))
    path = folder / "image.png"
    if kind == "shape":
        size = rng.choice(((1, 60000), (60000, 1), (20000, 20000), (1, 1)))
        Image.new("1", size).save(path)
    elif kind == "deep":
        Image.fromarray(np.full((8, 8), rng.choice((300, 30000)), np.uint16)).save(path)
    else:
        stored = io.BytesIO()
        Image.new("RGB", (40, 30), (9, 99, 199)).save(stored, kind)
        path.write_bytes(mutated_bytes(rng, stored.getvalue()))
    read = read_image(str(path))
    check(read.mode == "RGB", f"mode {read.mode}")
    check(max(read.size) <= 1000 * min(read.size), f"size {read.size}")
    if kind == "deep":
        check(0 < int(np.asarray(read).mean()) < 255 or read.getpixel((0, 0)) != (255, 255, 255), "all white")


# --- archives


def archive(rng: random.Random, folder: Path, marker: Path) -> None:
    """Tar and zip files with odd members, then odd bytes."""
    members = [
        ("a/1.txt", b"one"),
        ("a/2.txt", b"two"),
        (rng.choice(NAMES)[:200].replace("\0", "") or "x", b"odd"),
    ]
    stored = io.BytesIO()
    if rng.random() < 0.5:
        with zipfile.ZipFile(stored, "w") as file:
            for name, content in members:
                file.writestr(name.encode("utf-8", "replace").decode(), content)
    else:
        with tarfile.open(fileobj=stored, mode=rng.choice(("w", "w:gz", "w:xz"))) as file:
            for name, content in members:
                member = tarfile.TarInfo(name.encode("utf-8", "replace").decode())
                member.size = len(content)
                member.type = rng.choice(
                    (tarfile.REGTYPE,) * 5 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
                )
                member.linkname = rng.choice(("../../outside", "a/1.txt", "/etc/passwd", ""))
                file.addfile(member, io.BytesIO(content))
    content = stored.getvalue()
    if rng.random() < 0.6:
        content = mutated_bytes(rng, content)
    (folder / "archive").write_bytes(content)
    unpack(folder / "archive", folder / "unpacked")
    found = [path for path in (folder / "unpacked").rglob("*") if path.is_symlink() or path.is_fifo()]
    check(not found, f"links or devices: {found}")


# --- weights and checkpoints


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    """The recorded CLIP of the golden tests."""
    state = golden_script.make_state_dict(**golden_script.PRESETS["tiny_public"])
    return {key: torch.from_numpy(np.asarray(each)).reshape(np.shape(each)) for key, each in state.items()}


@functools.cache
def _tiny_clip() -> Path:
    path = Path(tempfile.mkdtemp()) / "clip.pt"
    torch.save({**_weights(), "logit_scale": _weights()["logit_scale"].reshape(())}, path)
    return path


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def weights(rng: random.Random, folder: Path, marker: Path) -> None:
    """A file of CLIP's weights: flipped bits, other tensors, pickles that run code."""
    path, state = folder / "clip.pt", dict(_weights())
    key = rng.choice(sorted(state))
    change = rng.choice(("bytes", "bytes", "nan", "shape", "missing", "type", "attack", "prefix", "value"))
    if change == "nan":
        state[key] = torch.full_like(state[key], rng.choice((float("nan"), float("inf"))))
    elif change == "shape":
        state[key] = state[key].reshape(-1)[: rng.choice((0, 1, 7))]
    elif change == "missing":
        del state[key]
    elif change == "type":
        state[key] = rng.choice(
            (state[key].bool(), state[key].to(torch.complex64), state[key].to_sparse(), state[key].to("meta"))
        )
    elif change == "prefix":
        state = {f"module.{name}": each for name, each in state.items()}
    elif change == "value":
        state[key] = rng.choice(VALUES)
    torch.save({**state, "x": Attack(marker)} if change == "attack" else state, path)
    if change == "bytes":
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    loaded = load_model("ViT-B/16", str(path)).state_dict()
    check(all(bool(each.isfinite().all()) for each in loaded.values()), "weights that are not finite")
    if change in ("bytes", "prefix"):
        for name, each in _weights().items():
            same = name not in loaded or torch.equal(loaded[name].float(), each.float())
            check(same, f"other values of {name} after {change}")


@functools.cache
def _run() -> tuple[Any, dict[str, Any], str]:
    """A trainer of MaPLe on photos, a checkpoint of it, and the folder that checkpoints lie in."""
    folder = Path(tempfile.mkdtemp())
    cfg = _default().clone()
    cfg.merge_from_file(str(ROOT / CONFIG))
    cfg.merge_from_list(
        [
            *(
                "DATASET.ROOT",
                str(_photos(folder / "photos")),
                "DATASET.NAME",
                "folder",
                "TRAINER.NAME",
                "MaPLe",
            ),
            *(
                "MODEL.BACKBONE.PATH",
                str(_tiny_clip()),
                "INPUT.SIZE",
                "(32, 32)",
                "TRAINER.MAPLE.PREC",
                "fp32",
            ),
            *("TRAINER.MAPLE.PROMPT_DEPTH", 2, "DATALOADER.NUM_WORKERS", 0, "USE_CUDA", False, "SEED", 1),
            *("OUTPUT_DIR", str(folder / "run"), "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1),
        ]
    )
    trainer = build_trainer(cfg)
    trainer.save_model(0, str(folder / "saved"))
    (file,) = (folder / "saved").glob("*/model.pth.tar-1")
    return trainer, torch.load(file, weights_only=False), file.parent.name


def checkpoint(rng: random.Random, folder: Path, marker: Path) -> None:
    """A checkpoint: flipped bits, other parts, pickles that run code; resumed from or loaded."""
    trainer, content, name = _run()
    content = {**content, "state_dict": dict(content["state_dict"])}
    before = {
        key: each.clone()
        for key, each in trainer.model.prompt_learner.state_dict().items()
        if _is_tensor(each)
    }
    change = rng.choice(("bytes", "bytes", "part", "part", "inside", "tensor", "attack", "pickle"))
    path = folder / name / "model.pth.tar-1"
    path.parent.mkdir()
    tensors = [key for key, each in content["state_dict"].items() if _is_tensor(each)]
    if change == "part":
        content[rng.choice(sorted(content))] = rng.choice(
            (*VALUES, torch.zeros(2), torch.zeros(2, device="meta"))
        )
    elif change == "inside":
        part = rng.choice([key for key in sorted(content) if isinstance(content[key], dict)])
        content[part] = mutated(rng, content[part])
    elif change == "tensor":
        key = rng.choice(tensors)
        value = content["state_dict"][key]
        nan = torch.full_like(value, float("nan"))
        others = (
            nan,
            value[..., :1],
            value.to("meta"),
            value.to_sparse(),
            value.int(),
            value.bool(),
            None,
            "x",
        )
        content["state_dict"][key] = rng.choice(others)
    elif change == "attack":
        content["rng"] = Attack(marker)
    torch.save(content, path)
    if change == "bytes":
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    elif change == "pickle":
        path.write_bytes(
            mutated_bytes(rng, pickle.dumps({"state_dict": {}, "epoch": 1, "x": Attack(marker)}, 2))
        )
    epoch = None
    try:
        if rng.random() < 0.6:
            epoch = trainer.resume_model_if_exist(str(folder))
        else:
            trainer.load_model(str(folder), epoch=1)
    finally:
        after = trainer.model.prompt_learner.state_dict()
        same = all(torch.equal(after[key], each) for key, each in before.items())
        trainer.best_result = float("-inf")
        for key, each in before.items():
            after[key].copy_(each)
    check(same, f"other learned tensors after {change}")
    check(epoch is None or epoch in (0, 1), f"epoch {epoch}")


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


# --- results


def results(rng: random.Random, folder: Path, marker: Path) -> None:
    """Results and plans that a report is made of, in all formats."""
    for seed in (1, 2):
        for classes in ("base", "new"):
            content: Mapping[str, Any] = result(80.0, "dtd", classes, seed)
            if rng.random() < 0.6:
                content = mutated(rng, dict(content))
            text = json.dumps(content) if rng.random() < 0.8 else mutated_text(rng, json.dumps(content))
            place = folder / classes / f"seed{seed}"
            place.mkdir(parents=True)
            (place / "result.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    if rng.random() < 0.5:
        plan(
            folder,
            [mutated(rng, {"folder": "base/seed1", "dataset": "dtd", "role": "base", "classes": "base"})],
        )
    if rng.random() < 0.2:
        write(folder / "deep", [], "x.json")
        (folder / "deep" / "result.json").write_text("[" * 100_000)
    report = make_report(gather([folder], read_methods()), "accuracy", "command")
    for extension, (_, render) in PRINTED.items():
        text = render(report)
        check(not UNPRINTED.search(text.replace("\n", "")), f"a control character in {extension}")
    for files in WRITTEN.values():
        for name, render in files.items():
            text = render(report)
            if name.endswith(".csv"):
                cells = [cell for line in text.splitlines() for cell in line.split(",")]
                check(not any(cell.startswith(("=", "@", "\t")) for cell in cells), f"a formula in {name}")
            check("<script>alert" not in text, f"a script in {name}")
    for run in gather([folder], read_methods()).runs:
        check(run.accuracy is None or 0 <= run.accuracy <= 100, f"accuracy {run.accuracy}")


def logs(rng: random.Random, folder: Path, marker: Path) -> None:
    """Logs that parse_test_res.py reads, and the folders they lie in."""
    log = "Finish training\n=> result\n* total: 1,000\n* accuracy: 81.5%\n* error: 18.5%\n* macro_f1: 81.0%\n"
    for seed in (1, 2, 3):
        name = f"seed{rng.choice((seed, seed, '20240601', '999999999999', '-1', 'x', ''))}"
        (folder / name).mkdir(exist_ok=True)
        text = mutated_text(rng, log) if rng.random() < 0.5 else log
        (folder / name / "log.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
    if rng.random() < 0.1:
        (folder / "seed9").mkdir(exist_ok=True)
        os.mkfifo(folder / "seed9" / "log.txt")
    code = parse_test_res.main([str(folder)])
    check(code in (0, 2), f"exit code {code}")


CASES: dict[str, Case] = {
    "configuration": configuration,
    "split_file": split_file,
    "table": table,
    "own_folder": own_folder,
    "few_shot_list": few_shot_list,
    "image": image,
    "archive": archive,
    "weights": weights,
    "checkpoint": checkpoint,
    "results": results,
    "logs": logs,
}
