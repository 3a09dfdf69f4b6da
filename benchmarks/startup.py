"""Time and memory to open an ImageNet-sized tree and draw 16 shots.

    python -m benchmarks.startup                                   # 1.28 million images: some minutes
    python -m benchmarks.startup --images 20000 --classes 100      # a small one

Makes a tree of empty files in class folders in a temporary folder, and removes it. Compared are

    plain        lists the folders, and makes an object with four attributes and one stat for each image
    first time   opens it as `ImageNet`, without an index, and writes one
    from index   the same, with the index

each in a process of its own, in turns; the imports are not counted. The folders are in the system's cache, so
that what a slow disk or a network adds to each stat and each listing is not in the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

from benchmarks.report import conditions, load_average, ratios, save, spread
from datasets import index
from datasets.catalog import ImageNet

SHOTS = 16
VAL_IMAGES = 50  # of each class, as in ImageNet's validation set
WAYS = ("plain", "first time", "from index")


class PlainImage:
    def __init__(self, impath: str, label: int, domain: int, classname: str) -> None:
        os.stat(impath)
        self.impath, self.label, self.domain, self.classname = impath, label, domain, classname


def open_plainly(root: str) -> list[str]:
    """Paths of the images drawn."""
    parts: dict[str, list[PlainImage]] = {}
    for part in ("train", "val"):
        folder = os.path.join(root, "imagenet", "images", part)
        parts[part] = [
            PlainImage(os.path.join(folder, name, file), label, 0, name)
            for label, name in enumerate(sorted(os.listdir(folder)))
            for file in sorted(os.listdir(os.path.join(folder, name)))
        ]
    by_label = defaultdict(list)
    for item in parts["train"]:
        by_label[item.label].append(item)
    rng = random.Random(1)
    return [item.impath for items in by_label.values() for item in rng.sample(items, SHOTS)]


def open_dataset(root: str) -> list[str]:
    """Paths of the images drawn."""
    dataset = SimpleNamespace(ROOT=root, NUM_SHOTS=SHOTS, SUBSAMPLE_CLASSES="all")
    return [item.impath for item in ImageNet(SimpleNamespace(SEED=1, DATASET=dataset)).train_x or ()]


def measure(way: str, root: str) -> dict[str, float | int]:
    """In a process of its own: seconds, and the memory in MiB that came on top of the imports."""
    before = _memory("VmRSS")
    _reset_peak()
    start = time.perf_counter()
    drawn = open_plainly(root) if way == "plain" else open_dataset(root)
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM") - before
    return {"seconds": seconds, "memory": peak, "drawn": hash(tuple(drawn))}


def _memory(key: str) -> float:
    # Of Linux. VmHWM, the peak of VmRSS, is reset below, so that the imports' own peak is not in it.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status does not tell {key}; this measurement needs Linux.")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def in_own_process(way: str, root: str) -> dict[str, float | int]:
    command = [sys.executable, "-m", "benchmarks.startup", "--measure", way, root]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}  # hash() of what was drawn is compared
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


def make_tree(root: str, images: int, classes: int) -> int:
    """Makes the files. Returns how many there are for training: the same number of each class."""
    each = images // classes
    for number in tqdm(range(classes), desc="Making files", unit="folder", delay=2, disable=None):
        name = f"n{number:08d}"
        for part, count in (("train", each), ("val", VAL_IMAGES)):
            folder = os.path.join(root, "imagenet", "images", part, name)
            os.makedirs(folder)
            for file in range(count):
                os.close(os.open(os.path.join(folder, f"{name}_{file * 7:05d}.JPEG"), os.O_CREAT))
    with open(os.path.join(root, "imagenet", "classnames.txt"), "w", encoding="utf-8") as list_file:
        list_file.writelines(f"n{number:08d} class {number}\n" for number in range(classes))
    return each * classes


def forget(root: str, also_index: bool) -> None:
    """Removes what an earlier opening has left: the draw, and the index."""
    shutil.rmtree(os.path.join(root, "imagenet", "split_fewshot"), ignore_errors=True)
    if also_index:
        for path in index.places(os.path.join(root, "imagenet")):
            if os.path.exists(path):
                os.unlink(path)


def compare(root: str, rounds: int) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    figures: dict[str, dict[str, list[float]]] = {way: {"seconds": [], "memory": []} for way in WAYS}
    loads: list[float] = []
    for number in range(rounds):
        loads += load_average()
        drawn = set()
        # By turns plain is first and last. The index that "first time" writes is the one that is read next.
        order = WAYS if number % 2 else (*WAYS[1:], WAYS[0])
        for way in order:
            forget(root, also_index=way == "first time")
            result = in_own_process(way, root)
            drawn.add(result["drawn"])
            for key, values in figures[way].items():
                values.append(result[key])
        if len(drawn) != 1:
            raise AssertionError("the three ways have not drawn the same images")
    return figures, loads


def main(arguments: argparse.Namespace) -> None:
    root = tempfile.mkdtemp(prefix="startup-", dir=arguments.folder)
    try:
        images = make_tree(root, arguments.images, arguments.classes)
        time.sleep(3)  # folders changed within two seconds are not yet believed to be as listed
        in_own_process("first time", root)  # not counted: what the system has to warm up
        figures, loads = compare(root, arguments.rounds)
        place = index.places(os.path.join(root, "imagenet"))[0]
        size = os.path.getsize(place) if os.path.exists(place) else 0
    finally:
        shutil.rmtree(root)
    total = images + arguments.classes * VAL_IMAGES
    plain = figures["plain"]
    lines = [
        f"# Opening {images:,} training images of {arguments.classes:,} classes, and drawing {SHOTS} shots",
        "",
        *conditions(["numpy", "torch"], loads),
        f"- {total:,} empty files with those of val; the index has {size / 2**20:.0f} MiB",
        f"- {arguments.rounds} rounds, each way in a process of its own; median and range, "
        "quotients of one round",
        "- Memory is the peak above what the imports take",
        "",
        "| | seconds | plain ÷ this | memory, MiB | plain ÷ this |",
        "|---|---|---|---|---|",
    ]
    for way in WAYS:
        seconds, memory = figures[way]["seconds"], figures[way]["memory"]
        lines.append(
            f"| {way} | {spread(seconds)} | {ratios(plain['seconds'], seconds, 1)} "
            f"| {spread(memory, 0)} | {ratios(plain['memory'], memory, 1)} |"
        )
    save(f"startup_{images}_images.md", lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=1_280_000, help="training images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "ROOT"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    given = build_parser().parse_args()
    if given.measure:
        print(json.dumps(measure(*given.measure)))
    else:
        main(given)
