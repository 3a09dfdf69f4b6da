"""The ways to predict that `benchmarks.predict` compares, each in a process of its own.

    python -m benchmarks.ways WAY JSON

Each line of standard input is a turn, `tower SECONDS`, `pipeline SECONDS`, `classes` or `peak`; what it found
is printed in a line. A way imports what it needs and no more, so that a graph's memory is without PyTorch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

AT_ONCE = 64  # test images
Classify = Callable[[np.ndarray], np.ndarray]  # `(batch 3 height width)` → `(batch class)`
Way = tuple[Classify, Callable[[], object]]  # and from the JPEGs on


# --- with PyTorch -----------------------------------------------------------------------------------------


def ours(given: Any, precision: str, compiled: bool = False) -> Way:
    import torch

    from trainers import load

    torch.set_num_threads(given.threads)
    model = load(given.saved, weights=given.weights, device="cpu", precision=precision)
    if compiled:
        model.encode_image = torch.compile(model.encode_image)  # type: ignore[method-assign]
    return (
        lambda images: model.probabilities(torch.from_numpy(images)).numpy(),
        lambda: model.predict(given.photos, batch_size=given.batch, progress=False),
    )


def with_open_clip(given: Any) -> Way:
    """As open_clip's README has it, the text's features computed before."""
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(given.open_clip)
    texts = torch.nn.functional.normalize(torch.randn(given.classes, model.visual.output_dim), dim=-1)

    def probabilities(images: Any) -> Any:
        features = model.encode_image(images)
        features /= features.norm(dim=-1, keepdim=True)
        return (100.0 * features @ texts.T).softmax(dim=-1)

    return from_loader(given, model, preprocess, probabilities)


def with_timm(given: Any) -> Way:
    """As timm's model cards have it, with a head of its own in place of the text."""
    import timm

    model = timm.create_model(given.timm, num_classes=given.classes)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return from_loader(given, model, transform, lambda images: model(images).softmax(dim=-1))


class Photos:
    """A dataset of files."""

    def __init__(self, paths: Sequence[str], transform: Callable[[Image.Image], Any]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def from_loader(given: Any, model: Any, transform: Any, probabilities: Callable[[Any], Any]) -> Way:
    """With torch's loader, whose workers are started in the warm-up."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(given.threads)
    model.eval()
    photos: Any = Photos(given.photos, transform)
    loader = DataLoader(photos, given.batch, num_workers=given.threads, persistent_workers=True)

    @torch.inference_mode()
    def pipeline() -> list[Any]:
        return [probabilities(images) for images in loader]

    @torch.inference_mode()
    def classify(images: np.ndarray) -> np.ndarray:
        return probabilities(torch.from_numpy(images)).numpy()

    return classify, pipeline


# --- graphs, without PyTorch ------------------------------------------------------------------------------


def with_onnxruntime(given: Any, file: str) -> Way:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(f"{given.saved}/graphs/{file}", options, providers)
    return from_threads(given, lambda images: session.run(["probabilities"], {"images": images})[0])


def with_openvino(given: Any, file: str) -> Way:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": given.threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(f"{given.saved}/graphs/{file}", "CPU", settings)
    return from_threads(given, lambda images: model({"images": images})["probabilities"])


def from_threads(given: Any, classify: Classify) -> Way:
    """With threads that read the photos while a batch is computed."""

    def pipeline() -> list[np.ndarray]:
        with ThreadPoolExecutor(given.threads) as pool:
            images = pool.map(partial(preprocess, given), given.photos)
            batches = iter(lambda: list(islice(images, given.batch)), [])
            return [classify(np.stack(batch)) for batch in batches]

    return classify, pipeline


def preprocess(given: Any, path: str) -> np.ndarray:
    """What the program of docs/export.md does with a photo."""
    image = decode(path)
    scale = given.side / min(image.size)
    image = image.resize([int(scale * side + 1e-6) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (round((side - given.side) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + given.side, top + given.side)), np.float32) / 255
    return ((pixels - np.float32(given.mean)) / np.float32(given.std)).transpose(2, 0, 1)


def decode(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def only_decoded(given: Any) -> Way:
    """The decoder's rate, by as many threads as the models have."""

    def pipeline() -> None:
        with ThreadPoolExecutor(given.threads) as pool:
            list(pool.map(decode, given.photos))

    return lambda images: images, pipeline


FP32, DYNAMIC, STATIC = "image.onnx", "image_int8.onnx", "image_int8_static.onnx"
WAYS: dict[str, Callable[[Any], Way]] = {
    "model fp32": partial(ours, precision="fp32"),
    "model fp32, compiled": partial(ours, precision="fp32", compiled=True),
    "model bf16": partial(ours, precision="bf16"),
    "model fp16": partial(ours, precision="fp16"),
    "open_clip fp32": with_open_clip,
    "timm fp32": with_timm,
    "ONNX Runtime fp32": partial(with_onnxruntime, file=FP32),
    "ONNX Runtime int8, dynamic": partial(with_onnxruntime, file=DYNAMIC),
    "ONNX Runtime int8, static": partial(with_onnxruntime, file=STATIC),
    "OpenVINO fp32": partial(with_openvino, file=FP32),
    "OpenVINO int8, dynamic": partial(with_openvino, file=DYNAMIC),
    "OpenVINO int8, static": partial(with_openvino, file=STATIC),
    "decoder": only_decoded,
}


# --- turns ------------------------------------------------------------------------------------------------


def rates(compute: Callable[[], object], images: int, seconds: float) -> tuple[float, float]:
    """Images a second of a computation that is repeated for so long, once at least; and per processor second.

    The latter is of all threads of this process, and not of a loader's workers.
    """
    start, spent, count = time.perf_counter(), time.process_time(), 0
    while count == 0 or time.perf_counter() - start < seconds:
        compute()
        count += images
    return count / (time.perf_counter() - start), count / (time.process_time() - spent)


def peak() -> float:
    """MB of the process's resident set, at most; NaN where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) / 1e6 for line in status if line.startswith("VmHWM:"))
    except OSError:  # another system
        return float("nan")


def serve(way: str, given: Any) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    classify, pipeline = WAYS[way](given)
    shape = (given.batch, 3, given.side, given.side)
    noise = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    for line in sys.stdin:
        turn, *seconds = line.split()
        found: Any
        if turn == "tower":
            found = rates(lambda: classify(noise), given.batch, float(*seconds))
        elif turn == "pipeline":
            found = rates(pipeline, len(given.photos), float(*seconds))
        elif turn == "classes":
            images = np.load(given.test, mmap_mode="r")
            parts = [np.array(images[k : k + AT_ONCE]) for k in range(0, len(images), AT_ONCE)]
            found = np.concatenate([classify(part).argmax(axis=-1) for part in parts]).tolist()
        else:
            found = peak()
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2])))
