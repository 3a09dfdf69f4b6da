"""What a method costs (table 6 of the MaPLe paper): parameters, operations, seconds and memory.

A trainer is built as `train.py` builds it, for any number of classes, with noise for images. Its own step is
what is measured.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dassl.engine import TRAINER_REGISTRY, build_trainer
from experiments.configuration import ROOT, build_parser, setup_cfg
from experiments.costs.flops import (
    compute_as_reference,
    has_own_step,
    image_and_text_flops,
    step_flops,
)
from experiments.costs.machine import Timing, peak_memory, time_of
from experiments.costs.stand_ins import NoImages, batch_of_noise, batches_of_noise, template_for
from experiments.methods import read_methods
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
    """A trainer with the file of its settings; `name` is what it is called in the tables."""

    trainer: str
    config: str
    file: Path
    name: str


@dataclass
class Work:
    """Operations of inference, and of a training step by batch size, where they are known."""

    image: int
    text: int
    step: dict[int, int] = field(default_factory=dict)


@dataclass
class Speed:
    """One batch size. Seconds a batch, and bytes above what the model takes; None where not measured."""

    batch: int
    training: Timing | None = None
    inference: Timing | None = None
    inference_with_text: Timing | None = None
    training_bytes: int | None = None
    inference_bytes: int | None = None
    out_of_memory: bool = False


@dataclass
class Costs:
    """All that is known of one method with one number of classes."""

    method: str
    classes: int
    learned: int
    clip_parameters: int
    published: int | None
    conditional: bool
    work: Work
    reference_work: Work
    speeds: list[Speed]
    reference_speeds: list[Speed]


def find_method(given: str, backbone: str, config: str = "") -> ConfiguredMethod:
    """A method by its name in configs/protocols/methods.yaml, TRAINER:CONFIG, or the name of a trainer.

    Without a configuration it takes that of the paper, or of the embedded CLIP; a trainer that has no file of
    its own (a plugin's) takes what all methods have in common.

    Raises:
        ValueError: there is no such trainer, or not one that can be measured, or no such file.
    """
    trainer, _, own_config = given.partition(":")
    listed = next((method for method in read_methods() if method.key == given), None)
    if listed:
        trainer = listed.trainer
    trainer_class = TRAINER_REGISTRY.get(trainer)
    if not is_known(trainer_class):
        raise ValueError(
            f"--trainers {trainer} is no CLIPPromptTrainer, and what it computes is not known; allowed are "
            f"{', '.join(known_trainers())}."
        )
    embedded, folder = backbone in EMBEDDED, ROOT / "configs" / "trainers"
    wanted = own_config or config
    if not wanted and listed:
        wanted = listed.config("base2new", EMBEDDED_DATASET if embedded else "", shots=16)
    if not wanted:
        return ConfiguredMethod(
            trainer, COMMON_CONFIGS[embedded], folder / f"{COMMON_CONFIGS[embedded]}.yaml", given
        )
    file = folder / trainer / f"{wanted}.yaml"
    if not file.is_file():
        there = sorted(each.stem for each in (folder / trainer).glob("*.yaml"))
        raise ValueError(
            f"{trainer} has no configuration {wanted!r}; configs/trainers/{trainer} holds "
            f"{', '.join(there) or 'none'}."
        )
    return ConfiguredMethod(trainer, wanted, file, given)


def known_trainers() -> list[str]:
    """The names of the trainers that can be measured."""
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
    own = ["DATASET.NAME", NoImages.__name__, "INPUT.SIZE", f"({size}, {size})"]
    own += [f"TRAINER.{key}.PREC", precision, "MODEL.BACKBONE.PATH", weights]
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


# --- measuring --------------------------------------------------------------------------------------------


def measure(
    method: ConfiguredMethod,
    cfg: Any,
    batch_sizes: Iterable[int],
    seconds: float = 0.5,
    reference: bool = False,
    published: int | None = None,
) -> Costs:
    """Builds the trainer and measures it.

    Args:
        seconds: how long each speed is measured; 0 for no speed and no memory.
        reference: whether the reference's way is measured for speed too; its operations always are.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg)
    # As in the middle of an epoch: no schedule moves.
    trainer.batch_idx, trainer.num_batches, trainer.epoch = 0, 2, 0
    model, classes = trainer.model, trainer.num_classes
    batches = {size: batch_of_noise(cfg, size, classes) for size in sorted(set(batch_sizes))}
    with contextlib.redirect_stdout(io.StringIO()):
        warm_up(trainer, batch_of_noise(cfg, 1, classes))
    work = work_of(trainer, batches)
    speeds = speeds_of(trainer, batches, seconds) if seconds else []
    compute_as_reference(model)
    reference_speeds = speeds_of(trainer, batches, seconds) if seconds and reference else []
    return Costs(
        method=method.name,
        classes=classes,
        learned=sum(each.numel() for each in model.prompt_learner.parameters() if each.requires_grad),
        clip_parameters=count_clip_parameters(model.clip_model),
        published=published,
        conditional=model.prompt_learner.conditional,
        work=work,
        reference_work=work_of(trainer, batches),
        speeds=speeds,
        reference_speeds=reference_speeds,
    )


def warm_up(trainer: Any, batch: dict[str, torch.Tensor]) -> None:
    """One step, or one test batch where nothing is learned: what is computed once is computed now."""
    if trainer.get_model_names():
        trainer.set_model_mode("train")
        trainer.forward_backward(batch)
    with torch.no_grad():
        trainer.model_inference(batch["img"].to(trainer.device))


def work_of(trainer: Any, batch_sizes: Iterable[int]) -> Work:
    """The operations; none of a step where nothing is learned, or where the trainer has a step of its own."""
    cfg, classes = trainer.cfg, trainer.num_classes
    work = Work(
        *image_and_text_flops(trainer.model, batch_of_noise(cfg, 1, classes)["img"].to(trainer.device))
    )
    if trainer.get_model_names() and not has_own_step(trainer):
        flops = step_flops(trainer, lambda images: batch_of_noise(cfg, images, classes))
        work.step = {size: flops(size) for size in batch_sizes}
    return work


def speeds_of(trainer: Any, batches: dict[int, dict], seconds: float) -> list[Speed]:
    """Each batch size's speed; one that a GPU has no memory for is marked."""
    speeds = []
    for size, batch in batches.items():
        try:
            speeds.append(speed_of(trainer, batch, seconds))
        except torch.OutOfMemoryError:
            speeds.append(Speed(size, out_of_memory=True))
    return speeds


def speed_of(trainer: Any, batch: dict[str, torch.Tensor], seconds: float) -> Speed:
    """Training; and testing, with text features of the beginning, as the engine does, and with new ones."""
    speed, device = Speed(len(batch["img"])), trainer.device
    images = batch["img"].to(device)

    def step() -> None:
        trainer.forward_backward(batch)

    def infer() -> None:
        trainer.model_inference(images)

    if trainer.get_model_names():
        trainer.set_model_mode("train")
        speed.training_bytes = peak_memory(step, device)
        speed.training = time_of(step, device, seconds)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        speed.inference_bytes = peak_memory(infer, device)
        speed.inference_with_text = time_of(infer, device, seconds)
        if trainer.model.prompt_learner.conditional:
            speed.inference = speed.inference_with_text
            return speed
        with trainer.precision.autocast(), trainer.model.text_encoded_once():
            infer()
            speed.inference = time_of(infer, device, seconds)
    return speed
