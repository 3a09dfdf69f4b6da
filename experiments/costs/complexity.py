"""Parameters and FLOPs of a method, built as `train.py` builds it, for any number of classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dassl.engine import TRAINER_REGISTRY
from experiments.configuration import ROOT, build_parser, setup_cfg
from experiments.costs.flops import has_own_step, image_and_text_flops, step_flops
from experiments.costs.synthetic import (
    NoImages,
    batch_of_noise,
    batches_of_noise,
    build_synthetic,
    template_for,
)
from experiments.methods import read_methods
from prompted_clip.errors import UserError
from prompted_clip.factory import EMBEDDED
from prompted_clip.model import CLIP
from trainers.clip_trainer import CLIPPromptTrainer

EMBEDDED_DATASET = "shapes"  # whose settings are those of the embedded CLIP
COMMON_CONFIGS = {True: "shapes", False: "vit_b16"}  # of trainers without a file of their own; by embedded
# Learned parameters on ViT-B/16, as published.
PUBLISHED_PARAMETERS = {
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx"): 3_555_072,
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx_cross_datasets"): 1_185_024,
    ("MaPLe", "vit_b16_c2_ep5_batch4_2ctx_shared"): 403_200,
    ("IVLP", "vit_b16_c2_ep5_batch4_2+2ctx"): 30_720,
    ("CoOp", "vit_b16_ctxv1"): 2_048,
    ("CoOp", "vit_b16_c4_ep10_batch1_ctxv1"): 2_048,
    ("CoCoOp", "vit_b16_c4_ep10_batch1_ctxv1"): 35_360,
}


@dataclass(frozen=True)
class ConfiguredMethod:
    """A trainer with the file of its settings; `name` is its label in tables."""

    trainer: str
    config: str
    file: Path
    name: str


@dataclass
class Complexity:
    """Parameters and FLOPs of one method with one number of classes.

    Attributes:
        published: learned parameters as published; None where these are not the published settings.
        image, text: FLOPs of inference; the text is of all classes.
        conditional: whether the text is encoded for each image.
        step: FLOPs of a training step by batch size; none where the trainer has a step of its own.
    """

    method: str
    classes: int
    learned: int
    clip_parameters: int
    published: int | None
    image: int
    text: int
    conditional: bool
    step: dict[int, int]


def find_method(given: str, backbone: str, config: str = "") -> ConfiguredMethod:
    """A method by its name in configs/protocols/methods.yaml, TRAINER:CONFIG, or the name of a trainer.

    Without a configuration it takes that of the paper, or of the embedded CLIP; a trainer that has no file of
    its own (a plugin's) takes what all methods have in common.

    Raises:
        ValueError: there is no such trainer, or it is no CLIPPromptTrainer, or there is no such file.
    """
    trainer, _, own_config = given.partition(":")
    listed = next((method for method in read_methods() if method.key == given), None)
    if listed:
        trainer = listed.trainer
    trainer_class = TRAINER_REGISTRY.get(trainer)
    if not is_known(trainer_class):
        raise UserError(
            f"--trainers {trainer} is no CLIPPromptTrainer, so that its FLOPs are not known; allowed are "
            f"{', '.join(known_trainers())}."
        )
    embedded, folder = backbone in EMBEDDED, ROOT / "configs" / "trainers"
    wanted = own_config or config
    if not wanted and listed:
        # Of settings for each dataset, those of Caltech101.
        wanted = listed.config("base2new", EMBEDDED_DATASET if embedded else "caltech101", shots=16)
    if not wanted:
        return ConfiguredMethod(
            trainer, COMMON_CONFIGS[embedded], folder / f"{COMMON_CONFIGS[embedded]}.yaml", given
        )
    file = folder / trainer / f"{wanted}.yaml"
    if not file.is_file():
        there = sorted(each.stem for each in (folder / trainer).glob("*.yaml"))
        raise UserError(
            f"{trainer} has no configuration {wanted!r}; configs/trainers/{trainer} holds "
            f"{', '.join(there) or 'none'}."
        )
    return ConfiguredMethod(trainer, wanted, file, given)


def known_trainers() -> list[str]:
    """The names of the trainers that are CLIPPromptTrainers."""
    return [name for name in TRAINER_REGISTRY.registered_names() if is_known(TRAINER_REGISTRY.get(name))]


def is_known(trainer_class: Any) -> bool:
    return isinstance(trainer_class, type) and issubclass(trainer_class, CLIPPromptTrainer)


def build_cfg(
    method: ConfiguredMethod,
    names: Sequence[str],
    backbone: str,
    size: int,
    weights: str = "",
    precision: str = "fp32",
    options: Sequence[str] = (),
) -> Any:
    """The configuration of a trainer for these class names, without images.

    Args:
        size: pixels on a side of an image.
        weights: file of weights; empty for those that `backbone` stands for.
        options: KEY VALUE pairs, which come last.
    """
    key = TRAINER_REGISTRY.get(method.trainer).settings_key()
    own = ["DATASET.NAME", NoImages.__name__, "DATASET.NUM_SHOTS", "16", "INPUT.SIZE", f"({size}, {size})"]
    own += [f"TRAINER.{key}.PREC", precision, "MODEL.BACKBONE.PATH", weights]
    if "DESCRIPTIONS" in TRAINER_REGISTRY.get(method.trainer).settings:
        own += [f"TRAINER.{key}.DESCRIPTIONS", "template"]  # encoded once, however many there are
    for node in ("TRAIN_X", "TEST"):
        own += [f"DATALOADER.{node}.LOADER", batches_of_noise.__name__]
    given = ["--trainer", method.trainer, "--config-file", str(method.file), "--backbone", backbone]
    cfg = setup_cfg(build_parser().parse_args([*given, *own, *options]))
    cfg.defrost()
    cfg.DATASET.OWN.CLASS_LIST = list(names)
    cfg.DATASET.OWN.TEMPLATE = template_for(backbone)
    cfg.freeze()
    return cfg


def published_parameters(method: ConfiguredMethod, cfg: Any, options: Sequence[str] = ()) -> int | None:
    """Learned parameters as published, if these are the published settings."""
    changed = any(option.startswith("TRAINER.") for option in options[::2])
    if cfg.MODEL.BACKBONE.NAME != "ViT-B/16" or changed:
        return None
    return PUBLISHED_PARAMETERS.get((method.trainer, method.config))


def count_clip_parameters(clip_model: CLIP) -> int:
    """All of CLIP's, without words of which the checkpoint has no embedding."""
    count = sum(each.numel() for each in clip_model.parameters())
    if clip_model.embedded_words is not None:
        missing = int((~clip_model.embedded_words).sum())
        count -= missing * clip_model.token_embedding.embedding_dim
    return count


def complexity_of(
    method: ConfiguredMethod, cfg: Any, batch_sizes: Iterable[int], options: Sequence[str] = ()
) -> Complexity:
    """Builds the trainer, and counts.

    Args:
        options: those that `cfg` was made with.
    """
    trainer = build_synthetic(cfg)
    model, classes = trainer.model, trainer.num_classes

    def batch(size: int) -> dict[str, torch.Tensor]:
        return batch_of_noise(cfg, size, classes)

    image, text = image_and_text_flops(model, batch(1)["img"].to(trainer.device))
    counts_step = trainer.get_model_names() and not has_own_step(trainer)
    return Complexity(
        method=method.name,
        classes=classes,
        learned=sum(each.numel() for each in model.prompt_learner.parameters() if each.requires_grad),
        clip_parameters=count_clip_parameters(model.clip_model),
        published=published_parameters(method, cfg, options),
        image=image,
        text=text,
        conditional=model.prompt_learner.conditional,
        step={size: step_flops(trainer, batch(size)) for size in batch_sizes} if counts_step else {},
    )
