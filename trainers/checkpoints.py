"""What a checkpoint holds of what was learned, what it was for, and whether it fits a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dassl.config.influence import own_path
from dassl.data.few_shot_list import shots_of
from dassl.engine.identity import sha256_of_tensors
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP
from prompted_clip.prompted_clip import PromptedCLIP

from .templates import template_of

if TYPE_CHECKING:
    from .clip_trainer import CLIPPromptTrainer

IDENTITY = "_extra_state"  # where torch keeps a module's own state among its tensors
MOST_DIFFERENCES = 6
HALF_ROUNDING = 0.01  # more than what float16 or bfloat16 can make of a weight, relative to the largest one

# The reference saves the whole model: CLIP's weights, and embeddings of words that are computed here. So are
# the text features that TaskRes and CLAP save.
TEACHER_KEYS = ("prompt_learner.ZS_image_encoder.", "model_distill.")
CLIP_KEYS = ("image_encoder.", "text_encoder.", "logit_scale", *TEACHER_KEYS)
CONTEXT_KEYS = ("token_prefix", "token_suffix", "token_midfix")
WORD_KEYS = (*CONTEXT_KEYS, "prompt_embeddings", "token_embedding", "tokenized_prompts", "base_text_features")
# Its IVLP, VPT and PromptSRC keep prompts in the encoders, those before block k in that block.
ENCODER_PROMPTS = re.compile(r"(image|text)_encoder\.(?:transformer\.resblocks\.(\d+)\.)?VPT(?:_shallow)?")


def identity_of(trainer: CLIPPromptTrainer, clip_model: CLIP) -> dict[str, Any]:
    """What a checkpoint says that it is for: plain names, numbers and lists."""
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    return {
        "trainer": type(trainer).__name__,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "backbone_sha256": fingerprint(clip_model),
        "projections_sha256": old_fingerprint(clip_model),  # what earlier versions wrote in its place
        "settings": {
            key: value
            for key, value in trainer.own_settings.items()
            if key not in ("PREC", *trainer.test_settings)
        },
        "classnames": list(dataset.classnames),
        "template": template_of(dataset),
        "own_path": own_path(cfg.DATASET),
        "data": {
            "DATASET.NAME": cfg.DATASET.NAME,
            "DATASET.NUM_SHOTS": shots_of(cfg, dataset),
            "DATASET.SUBSAMPLE_CLASSES": cfg.DATASET.SUBSAMPLE_CLASSES,
            "SEED": cfg.SEED,
            # Of the images drawn; "" for a dataset that does not say.
            "sample_sha256": getattr(getattr(dataset, "sample", None), "sha256", ""),
        },
    }


def fingerprint(clip_model: CLIP) -> str:
    """Tells one CLIP from another: sha256 over all its tensors, in float32."""
    return sha256_of_tensors(clip_model.state_dict())


def old_fingerprint(clip_model: CLIP) -> str:
    """What checkpoints of earlier versions hold in its place: sha256 over CLIP's projections alone."""
    digest = hashlib.sha256()
    for tensor in (clip_model.text_projection, clip_model.visual.conv1.weight, clip_model.logit_scale):
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def learned_tensors(state_dict: Mapping[str, Any], wanted: Container[str] = ()) -> dict[str, Any]:
    """The learner's part of a state dict of this project, or of the reference, under this project's keys.

    Args:
        wanted: keys of the learner, which may be among those of CLIP's encoders.
    """
    learned = {}
    for key, value in state_dict.items():
        if key in wanted:
            learned[key] = value
        elif found := ENCODER_PROMPTS.fullmatch(key):
            encoder, block = found.groups()
            name = f"{encoder}_tokens" if block is None else f"deep_{encoder}.{int(block) - 1}"
            learned[f"prompt_learner.{name}"] = value
        elif not key.startswith(CLIP_KEYS) and not key.endswith(WORD_KEYS):
            learned[key] = value
    return learned


def check_fit(
    path: str, state_dict: Mapping[str, Any], wanted: Mapping[str, Any], model: PromptedCLIP
) -> None:
    """Refuses a file that does not fit the run that is to load it.

    Args:
        state_dict: all of the file's.
        wanted: the state dict that what is learned has in this run.

    Raises:
        ValueError: lists what differs.
    """
    saved = learned_tensors(state_dict, wanted)
    differences = []
    for key in wanted:
        if key.endswith(IDENTITY):
            differences += _identity_differences(saved.get(key), wanted[key], model)
    differences += _clip_differences(state_dict, model)
    for key in sorted(wanted.keys() | saved.keys()):
        if key.endswith(IDENTITY):
            continue
        if key not in saved:
            differences.append(f"{key} is missing")
        elif key not in wanted:
            differences.append(f"{key} is unexpected")
        elif not isinstance(saved[key], Tensor):
            differences.append(f"{key} is not a tensor")
        elif saved[key].shape != wanted[key].shape:
            differences.append(f"{key} is {tuple(saved[key].shape)}, here {tuple(wanted[key].shape)}")
    if differences:
        more = len(differences) - MOST_DIFFERENCES
        listed = "; ".join(differences[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(
            f"The checkpoint {path} does not fit this run: {listed}. "
            "Give it with the backbone and the settings that it was trained with."
        )


def _identity_differences(saved: Any, here: dict[str, Any], model: PromptedCLIP) -> list[str]:
    """Where a checkpoint's identity differs from this run's; the reference's checkpoints have none."""
    if not isinstance(saved, Mapping) or not saved:  # saved by this project's learner, without a trainer
        return []
    differences = []
    if saved.get("trainer") != here["trainer"]:
        differences.append(f"it was trained by {saved.get('trainer')}, here is {here['trainer']}")
    if saved.get("backbone_sha256") not in (here["backbone_sha256"], here["projections_sha256"]):
        differences.append(
            f"it was trained on {saved.get('backbone')}, here are other CLIP weights ({here['backbone']})"
        )
    settings = saved.get("settings") or {}
    for key, value in here["settings"].items():
        if key in settings and settings[key] != value:
            differences.append(f"{key} was {settings[key]!r}, here {value!r}")
    if model.prompt_learner.class_specific and saved.get("classnames") != here["classnames"]:
        differences.append("it has contexts for other classes")
    return differences


def _clip_differences(state_dict: Mapping[str, Any], model: PromptedCLIP) -> list[str]:
    """Where the CLIP in the file differs from this run's, if the file holds all of CLIP."""
    clip_state = model.clip_model.state_dict()
    differences = []
    for key, value in state_dict.items():
        ours = key.replace("image_encoder.", "visual.").replace("text_encoder.", "")
        if key.startswith(CLIP_KEYS) and ours in clip_state and isinstance(value, Tensor):
            here = clip_state[ours].float().cpu()
            if value.shape != here.shape:
                differences.append(f"its CLIP has {ours} {tuple(value.shape)}, here {tuple(here.shape)}")
            elif (value.float() - here).abs().max() > HALF_ROUNDING * here.abs().max():
                differences.append(f"its CLIP has other values in {ours}")
    return differences


def check_same_run(directory: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to continue another run than this one; what its checkpoint does not say is not compared.

    Args:
        before, now: the learners' identities.

    Raises:
        ValueError: the images or their order are others; lists what differs.
    """
    earlier = before.get("data") or {}
    differences = [
        f"{key} was {earlier[key]!r}, here {value!r}"
        for key, value in now["data"].items()
        if key in earlier and earlier[key] != value
    ]
    if before.get("classnames", now["classnames"]) != now["classnames"]:
        differences.append("its classes have other names")
    if differences:
        raise UserError(
            f"The run in {directory} cannot be continued by this one: {'; '.join(differences)}. "
            "Give another --output-dir to start a new one."
        )
