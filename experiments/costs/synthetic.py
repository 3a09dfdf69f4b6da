"""Synthetic images, class names and weights, for measurements in which no value matters."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import save_file

from dassl.data.data_manager import LOADER_REGISTRY
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.utils import Registry
from datasets.shapes import Shapes, class_table
from prompted_clip import available_models, load_model, tokenize
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.factory import EMBEDDED, OPEN_CLIP
from prompted_clip.model import CLIP
from prompted_clip.open_clip_models import model_options, split_name
from trainers.templates import DEFAULT_TEMPLATE

# --- images -----------------------------------------------------------------------------------------------


class NoImages(DatasetBase):
    """Class names without images: one entry for each name of `DATASET.OWN.CLASS_LIST`."""

    def __init__(self, cfg: Any) -> None:
        self.template = cfg.DATASET.OWN.TEMPLATE
        names = enumerate(cfg.DATASET.OWN.CLASS_LIST)
        entries = [Datum(label=label, classname=name) for label, name in names]
        super().__init__(train_x=entries, val=entries, test=entries)


class OneBatch(list):
    """A loader of one batch, with what trainers ask a loader for."""

    def __init__(self, batch: dict[str, Any], batch_size: int, dataset: Sequence[Datum]) -> None:
        super().__init__([batch])
        self.batch_size, self.dataset = batch_size, dataset


def batches_of_noise(cfg: Any, data_source: Sequence[Datum], batch_size: int, **_: Any) -> OneBatch:
    return OneBatch(batch_of_noise(cfg, batch_size, len(data_source)), batch_size, data_source)


@contextlib.contextmanager
def registered(registry: Registry, entry: Any) -> Iterator[None]:
    """Within, `entry` is in a registry."""
    registry.register(entry)
    try:
        yield
    finally:
        del registry._obj_map[entry.__name__]


def build_synthetic(cfg: Any) -> Any:
    """The trainer of a configuration whose dataset is `NoImages`; nothing is printed."""
    with (
        registered(DATASET_REGISTRY, NoImages),
        registered(LOADER_REGISTRY, batches_of_noise),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        trainer = build_trainer(cfg)
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 2, 0  # as in the middle of an epoch
    return trainer


def batch_of_noise(cfg: Any, size: int, classes: int) -> dict[str, torch.Tensor]:
    """A batch as the engine's loaders yield it: images `(size 3 height width)`, labels `(size)`."""
    number = torch.arange(size)
    images = torch.randn(size, 3, *cfg.INPUT.SIZE, generator=torch.Generator().manual_seed(0))
    return {"img": images, "label": number % classes, "domain": torch.zeros_like(number), "index": number}


# --- class names ------------------------------------------------------------------------------------------


def class_names(count: int, backbone: str, file: str = "") -> list[str]:
    """As many class names; where there are fewer, they are repeated.

    Those of a file, one per line; else ImageNet's, evenly spaced; for an embedded CLIP, which does not know
    their words, those of `Shapes`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no name.
    """
    if file:
        if not Path(file).is_file():
            raise MissingFileError(f"--class-names {file}: there is no such file.")
        names = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
        names = [name for name in names if name]
        if not names:
            raise UserError(f"--class-names {file} is empty; it holds one class name per line.")
    elif backbone in EMBEDDED:
        names = [" ".join(words) for words in class_table()]
    else:
        every = max(1, len(IMAGENET_CLASSNAMES) // count)
        names = list(IMAGENET_CLASSNAMES)[::every]
    return [names[number % len(names)] for number in range(count)]


def template_for(backbone: str) -> str:
    return Shapes.template if backbone in EMBEDDED else DEFAULT_TEMPLATE


def tokens_of_names(names: Sequence[str]) -> float:
    """The mean number of tokens of a class name, without SOS and EOT."""
    ends = tokenize(list(names), truncate=True).argmax(dim=-1)
    return float(ends.float().mean()) - 1


# --- weights ----------------------------------------------------------------------------------------------


def architecture(backbone: str) -> dict[str, Any]:
    """The arguments of `CLIP` for a backbone's name: one of OpenAI's, or `open_clip:ARCHITECTURE/TAG`.

    Raises:
        ValueError: the name is not known, or not of a CLIP that takes prompts here.
    """
    if backbone.startswith(OPEN_CLIP):
        options, name = model_options(backbone), split_name(backbone)[0]
    elif backbone in EMBEDDED:
        raise UserError(f"--random-weights: {backbone} comes with its own weights; leave the option out.")
    elif backbone in available_models():
        options, name = {}, backbone.replace("/", "-").replace("@336px", "-336")
    else:
        allowed = ", ".join(available_models())
        raise UserError(f"--backbone is {backbone!r}; allowed are {allowed} and {OPEN_CLIP}ARCHITECTURE/TAG.")
    config = open_clip.get_model_config(name)
    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    text = open_clip.CLIPTextCfg(**config["text_cfg"])
    return {
        "embed_dim": config["embed_dim"],
        "image_resolution": vision.image_size,
        "vision_layers": vision.layers,
        "vision_width": vision.width,
        "vision_patch_size": vision.patch_size,
        "vision_mlp_width": int(vision.width * vision.mlp_ratio),
        "vision_pre_norm": not vision.no_ln_pre,
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "transformer_width": text.width,
        "transformer_heads": text.heads,
        "transformer_layers": text.layers,
        "text_mlp_width": int(text.width * text.mlp_ratio),
        **options,
    }


def image_size(backbone: str) -> int:
    """Pixels on a side of a backbone's images.

    Raises:
        ValueError: the name is not known.
    """
    if backbone in EMBEDDED:
        return load_model(backbone).visual.input_resolution
    return architecture(backbone)["image_resolution"]


@contextlib.contextmanager
def random_weights(backbone: str) -> Iterator[Path]:
    """A file with random weights of a backbone, for `MODEL.BACKBONE.PATH`; removed afterwards.

    Raises:
        ValueError: as `architecture`.
    """
    arguments = architecture(backbone)
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        file = Path(folder) / "random.safetensors"
        save_file({key: value.half() for key, value in CLIP(**arguments).state_dict().items()}, file)
        yield file
