"""CLIP from weights: `load_model` for trainers, and OpenAI's `load`, `build_model` and `tokenize`."""

from __future__ import annotations

import difflib
import http.client
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from .errors import DownloadError, NotFiniteError, UserError
from .files import sha256_of_file
from .model import CLIP, convert_weights
from .simple_tokenizer import default_tokenizer, tokenize
from .tensor_files import not_finite, number_kind
from .weights import check_plain, clean_state_dict, model_arguments, read_state_dict, widen_embedding

if TYPE_CHECKING:
    from torchvision.transforms import Compose

__all__ = ["available_models", "build_model", "load", "load_model", "pixel_statistics", "tokenize"]

_BASE_URL = "https://openaipublic.azureedge.net/clip/models"
_MODELS = {
    name: f"{_BASE_URL}/{sha256}/{name.replace('/', '-').replace('@', '-')}.pt"
    for name, sha256 in {
        "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
        "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
        "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
        "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
        "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    }.items()
}

# Weights that are part of the project: see docs/embedded_default.md.
EMBEDDED = {"ViT-Shapes/8": Path(__file__).parent / "embedded" / "vit_shapes_8.safetensors"}
EMBEDDED_SHA256 = {"ViT-Shapes/8": "c6e4b6ef3a88180700976e7e4c447dc9f06057245a3cf47980b11822a0002d1f"}

OPEN_CLIP = "open_clip:"  # begins the names of open_clip's models

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def available_models() -> list[str]:
    """The names that `load` takes; any model of open_clip's that fits is `"open_clip:ARCHITECTURE/TAG"`."""
    return [*_MODELS, *EMBEDDED]


def _download(url: str, root: str | None = None) -> str:
    """Downloads one of OpenAI's files, whose URL holds its sha256, and returns its path.

    Of processes that start together, on any machine, one downloads and the others wait for it. The file
    appears under its name only when it is whole and its checksum is right.

    Raises:
        ConnectionError: the download failed.
        ValueError: what was downloaded has another checksum.
    """
    folder = Path(root or os.path.expanduser("~/.cache/clip"))
    expected = url.split("/")[-2]
    target = folder / url.split("/")[-1]
    by_hand = f"fetch {url} by another way and give the file as MODEL.BACKBONE.PATH"
    try:
        while not _is_there(target, expected):
            folder.mkdir(parents=True, exist_ok=True)
            with _sole_download(target) as has_waited:
                # Those that waited check the other's file side by side, when the lock is free again.
                if not (target.is_file() if has_waited else _is_there(target, expected)):
                    _fetch(url, target, expected, by_hand)
                    break
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = " ".join(str(error).split())
        raise DownloadError(f"{url} could not be downloaded ({reason}); {by_hand}.") from error
    return str(target)


def _is_there(target: Path, expected: str) -> bool:
    return target.is_file() and sha256_of_file(target) == expected


@contextmanager
def _sole_download(target: Path) -> Iterator[bool]:
    """Waits for another process that downloads the file; gives whether there was one.

    Where the file system has no locks, nobody waits.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"), mode=0o666)  # another user may wait for it
    has_waited = False
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"Waiting for {target.name}, which another process downloads into {target.parent}")
            has_waited = True
            lock.acquire()
    try:
        yield has_waited
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _fetch(url: str, target: Path, expected: str, by_hand: str) -> None:
    """Downloads a file, which appears under its name when it is whole and its sha256 is the expected one."""
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    if target.is_file():
        print(f"{target} has another sha256 than {expected}: it is downloaded again")
    try:
        with urllib.request.urlopen(url, timeout=60) as source, open(partial, "wb") as output:
            size = int(source.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=target.name) as progress:
                while chunk := source.read(1 << 20):
                    output.write(chunk)
                    progress.update(len(chunk))
        if partial.stat().st_size < size:
            raise DownloadError(f"it broke off after {partial.stat().st_size} of {size} bytes")
        found = sha256_of_file(partial)
        if found != expected:
            raise UserError(
                f"{url} gave a file with sha256 {found} instead of {expected}: not kept; {by_hand}."
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def is_published(name: str, path: str = "") -> bool:
    """Whether a CLIP's weights are those that were published under its name: OpenAI's, by their sha256.

    Args:
        path: the file of the weights; "" for the one that `name` stands for.
    """
    if not path:
        return name in _MODELS
    return name in _MODELS and f"/{sha256_of_file(Path(path).expanduser())}/" in _MODELS[name]


def _transform(
    n_px: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, interpolation: str = "bicubic"
) -> Compose:
    """A model's preprocessing of an image, for a square of `n_px` pixels; OpenAI's by default."""
    # Here, as it takes seconds to import.
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    return Compose(
        [
            Resize(n_px, interpolation=InterpolationMode(interpolation)),
            CenterCrop(n_px),
            _to_rgb,
            ToTensor(),
            Normalize(mean, std),
        ]
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def build_model(state_dict: Mapping[str, Tensor]) -> CLIP:
    """OpenAI's function: state dict → CLIP for evaluation, with float16 weights where OpenAI has them.

    Raises:
        ValueError: the state dict is not of a CLIP that can be built here.
    """
    source = "The state dict"
    plain = check_plain(clean_state_dict(state_dict, source), source)
    own = {key: value.detach().clone() for key, value in plain.items()}
    model = _build(own, source)
    convert_weights(model)
    return _finite(model, source)


def _build(state_dict: dict[str, Tensor], source: str, name: str = "") -> CLIP:
    """A CLIP in float32 and evaluation mode, made of these very tensors, which have OpenAI's names.

    Raises:
        ValueError: the weights are not of the model `name`, or not of a CLIP that can be built here;
            `source` names where they are from.
    """
    vocabulary = len(default_tokenizer().encoder)
    embedded_words = widen_embedding(state_dict, vocabulary, source)
    arguments = model_arguments(state_dict, source)
    if arguments["vocab_size"] > vocabulary:
        raise UserError(
            f"{source} embeds {arguments['vocab_size']} words, and CLIP's tokenizer has {vocabulary}: "
            "it was trained with another tokenizer."
        )
    if open_clip_models := _open_clip_models(name):
        options = open_clip_models.model_options(name)
        open_clip_models.check_widths(name, arguments)
        arguments |= options
    try:
        with _NoRandomNumbers():  # for values that are replaced at once
            model = CLIP(**arguments)
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"{source} holds encoders that do not divide into heads: {error}.") from error
    wanted = model.state_dict()
    differing = [f"no {key}" for key in wanted if key not in state_dict]
    differing += [f"{key} too many" for key in state_dict if key not in wanted]
    differing += [
        f"{key} is {tuple(state_dict[key].shape)} and should be {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state_dict and wanted[key].shape != state_dict[key].shape
    ]
    differing += [
        f"{key} is of {state_dict[key].dtype}, and not of {number_kind(wanted[key].dtype)}"
        for key in wanted
        if key in state_dict and number_kind(wanted[key].dtype) != number_kind(state_dict[key].dtype)
    ]
    if differing:
        raise UserError(
            f"{source} holds no whole CLIP ({len(differing)} differences): {'; '.join(differing[:4])}."
        )
    model.load_state_dict({key: state_dict[key].to(wanted[key].dtype) for key in wanted}, assign=True)
    model.embedded_words = embedded_words
    return model.eval()


class _NoRandomNumbers(TorchFunctionMode):
    """Within, tensors that would be drawn stay empty, so that the system gives no memory for them either.

    On "meta" there would be none, too, but torch imports its compiler for that, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def _finite(model: CLIP, source: str) -> CLIP:
    """The model, whose weights are numbers, also where they were rounded to float16."""
    if name := not_finite(model.state_dict()):
        raise NotFiniteError(
            f"{source}: {name} has a NaN, an infinity, or a number too large for its type. The weights are "
            "damaged, or of a training that diverged: fetch or make them again."
        )
    return model


def _with_sum(path: Path, expected: str) -> Path:
    """The path of a file that has a sha256."""
    if sha256_of_file(path) != expected:
        raise UserError(f"{path} is damaged: its sha256 is not {expected}. Delete it, and fetch it again.")
    return path


def load_model(name: str, path: str | Path = "", download_root: str | None = None) -> CLIP:
    """Loads a CLIP on the CPU, in float32 and evaluation mode.

    OpenAI's weights carry the float16 rounding with which they are published; others keep their precision.

    Args:
        name: one of `available_models()`, `"open_clip:ARCHITECTURE/TAG"`, or `"open_clip:local-dir:FOLDER"`
            of a folder with open_clip_config.json and weights.
        path: a file of weights, read instead of the ones that `name` stands for. Widths, depth, patch and
            resolution are those of the file; heads, activation and rounding are still those of `name`.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ConnectionError: a download failed.
        ValueError: the name is not known, or the file does not fit or is damaged.
    """
    if open_clip_models := _open_clip_models(name):
        other = open_clip_models.why_not(open_clip_models.config_of(name))
        if not path:
            path = open_clip_models.fetch_weights(name)
            blob = Path(path).resolve()  # the hub's cache names large files by their sha256
            if re.fullmatch("[0-9a-f]{64}", blob.name):
                _with_sum(blob, blob.name)
        if other:
            from .other_towers import load_other

            return _finite(load_other(name, path), str(path))
        return _finite(_build(read_state_dict(path), str(path), name), str(path))
    if name not in available_models():
        near = difflib.get_close_matches(name, available_models(), n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}; allowed are {', '.join(available_models())} "
            f"and open_clip:ARCHITECTURE/TAG.{hint}"
        )
    if not path and name in EMBEDDED:
        path = _with_sum(EMBEDDED[name], EMBEDDED_SHA256[name])
    path = path or _download(_MODELS[name], download_root)
    model = _build(read_state_dict(path), str(path))
    convert_weights(model)
    return _finite(model, str(path)).float()


def _open_clip_models(name: str) -> ModuleType | None:
    """The module of open_clip's models, if `name` is of one; imported here, as it takes seconds."""
    if not name.startswith(OPEN_CLIP):
        return None
    from . import open_clip_models

    return open_clip_models


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each colour by which a model's images are normalised; OpenAI's for most."""
    open_clip_models = _open_clip_models(name)
    return (open_clip_models.pixel_statistics(name) if open_clip_models else None) or (MEAN, STD)


def interpolation(name: str) -> str:
    """How a model's images are resized; "bicubic" for most."""
    open_clip_models = _open_clip_models(name)
    return (open_clip_models.interpolation(name) if open_clip_models else None) or "bicubic"


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
) -> tuple[CLIP, Callable[[Image.Image], Tensor]]:
    """OpenAI's function: a name, as of `load_model`, or a path → the model and its own preprocessing.

    As OpenAI's, the model is in float16 on a GPU and in float32 on a CPU; a GPU is taken if there is one.

    Raises:
        ValueError: `jit` is asked for; and as `load_model`.
    """
    if jit:
        raise UserError("clip.load(jit=True): only the plain model is to be had; leave jit out.")
    model = load_model("ViT-B/16", name) if os.path.isfile(name) else load_model(name, "", download_root)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cpu":
        convert_weights(model)
    mean, std = pixel_statistics(name)
    if (mean, std, interpolation(name)) != (MEAN, STD, "bicubic"):
        print(f"{name} takes images resized by {interpolation(name)}, of mean {mean} and std {std}")
    return model.to(device), _transform(model.visual.input_resolution, mean, std, interpolation(name))
