"""The folder that `save_pretrained` writes, the same on disk and on the hub: docs/sharing.md has each field.

`config.json` says what the model is; `model.safetensors` holds the learned tensors under the names that they
have in checkpoints; `classifier.safetensors`, if it is there, the classes' text features. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dassl.config.influence import influencing
from dassl.engine.identity import sha256_of_tensors
from dassl.utils import read_json
from dassl.utils.tools import package_versions
from prompted_clip.calibration import checked
from prompted_clip.errors import MissingFileError, NotFiniteError, UserError
from prompted_clip.factory import _MODELS, EMBEDDED_SHA256, OPEN_CLIP
from prompted_clip.files import atomic_open
from prompted_clip.prompt_learner import PromptLearner
from prompted_clip.prompted_clip import PromptedCLIP
from prompted_clip.tensor_files import not_finite

from .checkpoints import IDENTITY
from .model_card import model_card
from .peft_adapter import PEFT_FILES

if TYPE_CHECKING:
    from .pretrained import Method

FORMAT = 1
CONFIG_FILE, TENSORS_FILE, CLASSIFIER_FILE = "config.json", "model.safetensors", "classifier.safetensors"
CARD_FILE = "README.md"
MORE_FILES = ("result.json", "few_shot.json")
FILES = (CONFIG_FILE, TENSORS_FILE, CLASSIFIER_FILE, CARD_FILE, *MORE_FILES, *PEFT_FILES)
LIBRARY = "maple-prompt-learning"
PACKAGES = (LIBRARY, "torch", "numpy", "Pillow", "open_clip_torch")  # that a model's numbers depend on
MOST_BYTES = 2**28  # of a file but the tensors
# The fields of config.json, and what each has to be.
FIELDS: dict[str, Any] = {
    "format": int,
    "method": str,
    "classnames": list,
    "template": str,
    "backbone": dict,
    "preprocessing": dict,
    "temperature": (int, float),
    "settings": dict,
    "learned_sha256": str,
    "trained_on": (dict, type(None)),
}


class Saved(NamedTuple):
    """A saved folder as it was read, each part checked."""

    folder: Path
    method: str
    settings: dict[str, Any]
    classnames: list[str]
    template: str
    backbone: dict[str, Any]
    temperature: float
    trained_on: dict[str, Any] | None
    calibration: dict[str, Any] | None
    tensors: dict[str, Tensor]
    text_features: Tensor | None
    files: dict[str, str]

    def check_backbone(self, sha256: str) -> None:
        """Refuses a CLIP with other weights than those that the model was trained on."""
        if sha256 != self.backbone["sha256"]:
            raise UserError(
                f"{self.folder} was trained on the CLIP {self.backbone['name']} of sha256 "
                f"{self.backbone['sha256'][:12]}..., here is one of {sha256[:12]}.... Give the file of those "
                "weights: load(..., weights=...)."
            )

    def put_into(self, module: nn.Module) -> None:
        """Loads the learned tensors; a ValueError says which do not fit, before any is loaded."""
        learner = next(each for each in module.modules() if isinstance(each, PromptLearner))
        learner.make_room({key.removeprefix("prompt_learner."): each for key, each in self.tensors.items()})
        wanted = {key: each for key, each in module.state_dict().items() if not key.endswith(IDENTITY)}
        differing = [f"no {key}" for key in wanted if key not in self.tensors]
        differing += [f"{key} too many" for key in self.tensors if key not in wanted]
        differing += [
            f"{key} is {tuple(self.tensors[key].shape)}, and should be {tuple(each.shape)}"
            for key, each in wanted.items()
            if key in self.tensors and self.tensors[key].shape != each.shape
        ]
        if differing:
            raise UserError(
                f"{self.folder / TENSORS_FILE} does not fit {self.method} as {CONFIG_FILE} describes it: "
                f"{'; '.join(differing[:4])}."
            )
        module.load_state_dict(self.tensors, strict=False)

    def put_classifier_into(self, model: PromptedCLIP) -> None:
        """Has the model use the text features that were saved, where there are some, instead of new ones."""
        if self.text_features is None:
            return
        features, width = self.text_features, model.clip_model.text_projection.shape[1]
        if features.shape != (len(self.classnames), width):
            raise UserError(
                f"{self.folder / CLASSIFIER_FILE} has text features {tuple(features.shape)}; of this model "
                f"they are {(len(self.classnames), width)}. Remove the file: they are computed then."
            )
        model.keep_text_features(features.to(model.clip_model.logit_scale.device))


# --- writing -----------------------------------------------------------------------------------------------


def write(model: PromptedCLIP, method: Method, folder: Path, classifier: bool) -> None:
    """See `Method.save_pretrained`."""
    prefix = "prompt_learner." if method.trainer_class.prefixed_keys else ""
    tensors = {
        f"{prefix}{key}": each.detach().cpu().float().contiguous()
        for key, each in model.prompt_learner.state_dict().items()
        if not key.endswith(IDENTITY)
    }
    if wrong := not_finite(tensors):
        raise NotFiniteError(f"{wrong} has a NaN or an infinity: the model is not saved. Train it again.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder.")
    there = [name for name in FILES if (folder / name).exists()]
    if there and CONFIG_FILE not in there:
        raise UserError(
            f"{folder} holds {there[0]}, which is of no saved model, such as that of a run: it is not "
            "overwritten. Give another folder."
        )
    content = {TENSORS_FILE: save(tensors, {"format": "pt"})}
    if classifier:
        if model.prompt_learner.conditional:
            raise UserError(
                f"{method.name} makes text features for each image: there is no classifier to be saved."
            )
        with torch.no_grad(), model.autocast():
            features = model.encode_text()
        content[CLASSIFIER_FILE] = save(
            {"text_features": features.float().cpu().contiguous()}, {"format": "pt"}
        )
    config = config_of(model, method, sha256_of_tensors(tensors))
    files = {name: method.files[name] for name in MORE_FILES if name in method.files}
    parameters = sum(each.numel() for each in tensors.values())
    card = model_card(config, files, parameters, takes_names=not model.prompt_learner.class_specific)
    content |= {name: text.encode() for name, text in (*files.items(), (CARD_FILE, card))}
    content |= method.trainer_class.more_files(model, method.cfg.MODEL.BACKBONE.NAME)
    content[CONFIG_FILE] = (json.dumps(config, indent=4, ensure_ascii=False) + "\n").encode()
    for name in FILES:  # of an earlier model, which this one does not have
        if name not in content:
            (folder / name).unlink(missing_ok=True)
    for name, data in content.items():  # config.json last: without it, there is no model
        with atomic_open(folder / name, "wb") as file:
            file.write(data)


def config_of(model: PromptedCLIP, method: Method, learned_sha256: str) -> dict[str, Any]:
    """The content of config.json."""
    cfg, own = method.cfg, method.trainer_class.settings_key()
    name = cfg.MODEL.BACKBONE.NAME
    settings = influencing(cfg, trains=True, own_section=own)
    normalizes = "normalize" in cfg.INPUT.TRANSFORMS
    return {
        "format": FORMAT,
        "library_name": LIBRARY,
        "method": method.name,
        "classnames": list(model.classnames),
        "template": method.template,
        "backbone": {
            "name": name,
            "revision": revision_of(name),
            "sha256": model.prompt_learner.identity["backbone_sha256"],
        },
        "preprocessing": {
            "size": cfg.INPUT.SIZE[0],
            "interpolation": cfg.INPUT.INTERPOLATION,
            "mean": list(cfg.INPUT.PIXEL_MEAN) if normalizes else None,
            "std": list(cfg.INPUT.PIXEL_STD) if normalizes else None,
        },
        "temperature": model.temperature,
        "calibration": model.calibration,
        "learned_sha256": learned_sha256,
        "trained_on": method.trained_on,
        "settings": {key: each for key, each in settings.items() if not key.startswith("DATASET.OWN.")},
        "versions": package_versions(PACKAGES),
    }


def revision_of(name: str) -> str:
    """Which weights a backbone's name stands for: the sha256 of OpenAI's file, or open_clip's tag."""
    if name in EMBEDDED_SHA256:
        return EMBEDDED_SHA256[name]
    if name.startswith(OPEN_CLIP):
        return name.rpartition("/")[2]
    return _MODELS[name].split("/")[-2] if name in _MODELS else ""


# --- reading -----------------------------------------------------------------------------------------------


def read(folder: Path) -> Saved:
    """Reads and checks a saved folder.

    Raises:
        FileNotFoundError: there is no file of tensors.
        ValueError: a file is damaged, or of another format.
    """
    path = folder / CONFIG_FILE
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; allowed are {MOST_BYTES:,}.")
    config = read_json(str(path))
    _check_config(config, path)
    tensors = read_tensors(folder / TENSORS_FILE)
    if sha256_of_tensors(tensors) != config["learned_sha256"]:
        raise UserError(
            f"{folder / TENSORS_FILE} is not the file that {CONFIG_FILE} was written with, or it is damaged: "
            "its tensors have another sha256. Fetch the folder again."
        )
    features = None
    if (folder / CLASSIFIER_FILE).is_file():
        features = read_tensors(folder / CLASSIFIER_FILE).get("text_features")
        if features is None or not features.is_floating_point():
            raise UserError(f"{folder / CLASSIFIER_FILE} holds no text_features. Remove it.")
    files = {
        name: (folder / name).read_text(encoding="utf-8", errors="replace")
        for name in MORE_FILES
        if (folder / name).is_file() and (folder / name).stat().st_size < MOST_BYTES
    }
    return Saved(
        folder,
        config["method"],
        config["settings"],
        config["classnames"],
        config["template"],
        config["backbone"],
        float(config["temperature"]),
        config["trained_on"],
        checked(config.get("calibration"), str(path)),
        tensors,
        features,
        files,
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all finite.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: there is no such file. Save or fetch the model again.")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}). Fetch it again.") from error
    if wrong := not_finite(tensors):
        raise NotFiniteError(f"{path}: {wrong} has a NaN or an infinity. Fetch it again.")
    return tensors


def _check_config(config: Any, path: Path) -> None:
    if not isinstance(config, dict) or "format" not in config:
        raise UserError(f"{path} is no configuration of this project's models: it has no `format`.")
    if config["format"] != FORMAT:
        raise UserError(
            f"{path} has format {config['format']!r}; this version reads {FORMAT}. Install the version of "
            f"{LIBRARY} that wrote it."
        )
    for key, kind in FIELDS.items():
        value = config.get(key)
        if key not in config or not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{path}: `{key}` is {str(value)[:80]!r}, not what {CONFIG_FILE} has there.")
    temperature = config["temperature"]
    if not (math.isfinite(temperature) and 0 < temperature <= 1e6):
        raise UserError(f"{path}: `temperature` is {temperature}; allowed are numbers above 0.")
    for key in ("name", "sha256"):
        if not isinstance(config["backbone"].get(key), str):
            raise UserError(f"{path}: `backbone` has no `{key}`.")
    if config["template"].count("{}") != 1:
        raise UserError(f"{path}: `template` is {config['template'][:80]!r}; it needs {{}} once.")
