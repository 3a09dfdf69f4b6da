"""Models in a program, without a configuration file or a dataset in sight: `from_clip`, `fit`, `load`.

A model knows its method (`PromptedCLIP.method`), which makes it for other classes, trains it, and saves it.
The format of a saved folder is in `saved_folder.py`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.config.influence import OWN_DATA, plain
from dassl.data.class_names import brief, check_class_names, few
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoints import file_to_load
from dassl.utils import load_checkpoint, read_json, restore_rng_state, rng_state, set_random_seed
from prompted_clip import pixel_statistics
from prompted_clip.calibration import checked
from prompted_clip.errors import MissingFileError, UserError
from prompted_clip.factory import interpolation
from prompted_clip.images import Preprocessing
from prompted_clip.prompted_clip import PromptedCLIP

from . import hub, saved_folder
from .checkpoints import IDENTITY
from .configuration import COMMON, extend_cfg, load_plugins_of, set_threads
from .templates import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from .clip_trainer import CLIPPromptTrainer

Model = TypeVar("Model", bound=PromptedCLIP)
RESULT_FILE, SAMPLE_FILE = "result.json", "few_shot.json"
OF_RUN = {
    "trainer": str,
    "command": list,
    "model_dir": str,
    "classnames": list,
    "per_class": list,
}  # read here
# Of a run's result.json, what another user may want to know; no paths and no command.
SHARED = (
    *("format", "finished", "trainer", "config", "dataset", "classes", "split", "shots", "seed", "backbone"),
    *("backbone_is_published", "sample_sha256", "results", "total", "correct", "per_class"),
    *("learned_parameters", "epochs", "device", "versions", "commit", "commit_is_clean", "calibration"),
)


# --- making a model ---------------------------------------------------------------------------------------


def from_clip(
    trainer_class: type[CLIPPromptTrainer],
    backbone: str,
    classnames: Sequence[str],
    *,
    weights: str | PathLike[str] = "",
    device: str | torch.device | None = None,
    precision: str | None = None,
    template: str = DEFAULT_TEMPLATE,
    config: str | PathLike[str] = "",
    settings: Mapping[str, Any] | None = None,
    checkpoint: str | PathLike[str] = "",
) -> PromptedCLIP:
    """See `CLIPPromptTrainer.from_clip`.

    Args:
        weights: a file of CLIP's weights, in place of those that `backbone` stands for.
        device: by default a GPU where there is one.
        precision: `fp32`, `fp16`, `bf16` or `amp`; by default the method's on a GPU, and fp32 on a CPU.
        template: the sentence of a class, for methods that read it; `{}` is its name.
        config: a configuration file of the method (yaml); by default what is published for base to novel.
        settings: more settings by their dotted keys, as {"TRAINER.MAPLE.N_CTX": 4}; docs/configuration.md.
        checkpoint: a checkpoint of these classes that `train.py` or the reference wrote; its learned tensors
            are taken.
    """
    names = checked_names(classnames)
    device = chosen_device(device)
    if template.count("{}") != 1:
        raise UserError(f"template is {template!r}; it needs {{}} once, where the class name is to stand.")
    key = trainer_class.settings_key()
    cfg = get_cfg_default()
    extend_cfg(cfg)
    _merge(cfg, COMMON | trainer_class.recipe)
    if config:
        cfg.merge_from_file(os.path.expanduser(config))
    cfg.TRAINER.NAME = trainer_class.__name__
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PATH = backbone, os.path.expanduser(weights)
    cfg.DATALOADER.NUM_WORKERS = 0  # in a program, spawned workers would import its main file
    if precision or device.type == "cpu":
        cfg.TRAINER[key].PREC = precision or "fp32"
    _merge(cfg, dict(settings or {}))
    with quiet(warns=bool(config or settings or precision)), _undisturbed():
        trainer, saved = _built(trainer_class, cfg, names, template, device, set(settings or ()))
    if checkpoint:
        _register(trainer, saved)
        with quiet():
            trainer.start_from(os.path.expanduser(checkpoint))
    return ready(trainer.model)


def _built(
    trainer_class: type[CLIPPromptTrainer],
    cfg: Any,
    classnames: Sequence[str],
    template: str,
    device: torch.device,
    given: set[str] | None = None,
) -> tuple[CLIPPromptTrainer, nn.Module]:
    """A trainer with a model and without data, and the module whose tensors are saved.

    Args:
        given: keys of the configuration that stay; those of INPUT are the backbone's otherwise. None: all.
    """
    cfg.USE_CUDA = device.type == "cuda"
    set_threads(cfg)  # as train.py, so that the logits are the same to the bit
    trainer = trainer_class.without_data(cfg, classnames, template)
    trainer.device = device
    clip_model = trainer.load_clip()
    if given is not None:
        mean, std = pixel_statistics(cfg.MODEL.BACKBONE.NAME)
        side = clip_model.visual.input_resolution
        own = {
            "INPUT.SIZE": (side, side),
            "INPUT.INTERPOLATION": interpolation(cfg.MODEL.BACKBONE.NAME),
            "INPUT.PIXEL_MEAN": list(mean),
            "INPUT.PIXEL_STD": list(std),
        }
        _merge(cfg, {key: value for key, value in own.items() if key not in given})
    saved = trainer.build_clip(clip_model)
    cfg.freeze()
    return trainer, saved


def ready(model: Model) -> Model:
    """The model, frozen and in evaluation mode."""
    model.eval()
    return model.requires_grad_(False)


def checked_names(classnames: Any) -> list[str]:
    """Class names as a list; raises a ValueError for what is none."""
    if isinstance(classnames, (str, bytes)) or not isinstance(classnames, Sequence):
        raise UserError(f'classnames is {brief(classnames)}; allowed is a list of names, as ["cat", "dog"].')
    if not classnames:
        raise UserError("classnames is empty; give at least one name.")
    check_class_names(dict(enumerate(classnames)), "classnames", "Give each class a name of its own.")
    return list(classnames)


def chosen_device(device: str | torch.device | None) -> torch.device:
    """A GPU where there is one, if none is named; raises a ValueError for one that is not there."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=chosen).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device is {str(device)!r}, which cannot be used here ({reason}); such are cpu, cuda, cuda:1."
        ) from error
    return chosen


def preprocessing(cfg: Any) -> Any:
    """The test transform that a configuration describes: PIL image → `(3 height width)`."""
    if "instance_norm" in cfg.INPUT.TRANSFORMS:
        from dassl.data.transforms import build_transform

        with redirect_stdout(io.StringIO()):
            return build_transform(cfg, is_train=False)
    normalizes = "normalize" in cfg.INPUT.TRANSFORMS
    mean, std = (list(cfg.INPUT[key]) if normalizes else None for key in ("PIXEL_MEAN", "PIXEL_STD"))
    return Preprocessing(cfg.INPUT.SIZE[0], cfg.INPUT.INTERPOLATION, mean, std)


def _merge(cfg: Any, settings: Mapping[str, Any]) -> None:
    cfg.merge_from_list([each for pair in settings.items() for each in pair])


def _register(trainer: CLIPPromptTrainer, saved: nn.Module) -> None:
    if any(True for _ in saved.parameters()):
        trainer.register_model(trainer.model_name, saved)


# --- what a model's method can do ---------------------------------------------------------------------------


class Method:
    """What made a model: a trainer's class with its settings.

    Args:
        cfg: the configuration.
        template: the sentence of a class, for methods that read it.

    Attributes:
        trained_on: what the model was trained on, as `config.json` says it; None for an untrained one.
        files: more files of a saved folder: `result.json` and `few_shot.json`, by their names.
    """

    def __init__(self, trainer_class: type[CLIPPromptTrainer], cfg: Any, template: str) -> None:
        self.trainer_class = trainer_class
        self.cfg = cfg
        self.template = template
        self.trained_on: dict[str, Any] | None = None
        self.files: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self.trainer_class.__name__

    def with_classnames(self, model: Model, classnames: Sequence[str]) -> Model:
        """See `PromptedCLIP.with_classnames`."""
        names = checked_names(classnames)
        learner = model.prompt_learner
        if learner.class_specific and names != list(model.classnames):
            raise UserError(
                f"This {self.name} has learned something for each of its classes ({few(model.classnames)}), "
                "so that it cannot tell others apart. Train it for those; or use a method that shares what "
                "it learns, such as MaPLe."
            )
        with quiet(), _undisturbed():
            trainer = self.trainer_class.without_data(self.cfg, names, self.template)
            trainer.device = model.clip_model.logit_scale.device
            other = trainer.build_learner(model.clip_model, names)
        state = {key: each for key, each in learner.state_dict().items() if not key.endswith(IDENTITY)}
        adapted = other.state_for(model.clip_model, state, model.classnames, names)
        other.make_room(adapted)
        other.load_state_dict(adapted, strict=False)
        other.identity = {**learner.identity, "classnames": names}
        other.loaded_identity = learner.loaded_identity or learner.identity
        made = type(model)(model.clip_model, other, self.cfg.MODEL.TEXT_CHUNK)
        made.classnames, made.preprocess, made.method = names, model.preprocess, copy.copy(self)
        made.temperature, made.autocast = model.temperature, model.autocast
        if sorted(names) == sorted(model.classnames):
            made.calibration = model.calibration
        elif model.calibration and not self.trainer_class.is_zero_shot:
            # Tuned prompts are not as sure of new classes as of base classes, so that a temperature of these
            # does not fit those (https://arxiv.org/abs/2402.04655, https://arxiv.org/abs/2410.02681).
            made.temperature = 1.0
        return ready(made)

    def fit(
        self,
        model: PromptedCLIP,
        photos: str | PathLike[str],
        *,
        shots: int = 16,
        epochs: int | None = None,
        seed: int = 1,
        classnames: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        calibrate: bool = True,
        output: str | PathLike[str] = "",
        verbose: bool = False,
    ) -> None:
        """See `PromptedCLIP.fit`: what `train.py` does with the same settings and seed, on the same device.

        Half of each class's photos are for training, three tenths for a test at the end, the rest for
        validation, unless the folder says otherwise; the split is saved beside the photos. After it, the
        model's classes are in the order of the sorted folders.

        Args:
            shots: photos per class to train on; -1 for all.
            epochs: by default as published.
            seed: of all that is random. The generators of the program are left as they were.
            classnames: the names of classes whose folders are called otherwise: folder → name.
            settings: more settings by their dotted keys, docs/configuration.md.
            calibrate: fits the model's temperature on the validation photos, where there are some.
            output: a folder for checkpoints, from which an interrupted `fit` goes on; by default a temporary
                one.
            verbose: prints all that `train.py` prints, instead of the epochs and the result.
        """
        from dassl.data import own_data, own_table  # noqa: F401  (registers them; here, as they need more)

        place = Path(photos).expanduser().resolve()
        is_table = place.is_file()
        own = {
            "DATASET.NAME": "csv" if is_table else "folder",
            "DATASET.ROOT": str(place.parent if is_table else place),
            "DATASET.OWN.PATH": place.name if is_table else "",
            "DATASET.OWN.TEMPLATE": self.template,
            "DATASET.NUM_SHOTS": shots,
            "SEED": seed,
            "TEST.CALIBRATE": calibrate,
            **({} if epochs is None else {"OPTIM.MAX_EPOCH": epochs}),
            **(settings or {}),
        }
        cfg = self.cfg.clone()
        cfg.defrost()
        _merge(cfg, own)
        cfg.merge_from_other_cfg({"DATASET": {"OWN": {"CLASS_NAMES": dict(classnames or {})}}})
        with contextlib.ExitStack() as stack:
            folder = os.path.expanduser(output) or stack.enter_context(tempfile.TemporaryDirectory())
            cfg.OUTPUT_DIR = str(folder)
            cfg.freeze()
            stack.enter_context(_undisturbed())
            if not verbose:
                stack.enter_context(redirect_stdout(_Brief(sys.stdout)))
            if seed >= 0:
                set_random_seed(seed)
            trainer = self.trainer_class(cfg)
            names = list(trainer.dm.dataset.classnames)
            if sorted(names) != sorted(model.classnames):
                only_there = sorted(set(names) - set(model.classnames))
                only_here = sorted(set(model.classnames) - set(names))
                raise UserError(
                    f"The photos in {place} are not of the model's classes: only the photos have "
                    f"{few(only_there) or 'none'}, only the model has {few(only_here) or 'none'}. Make a "
                    "model of the photos' classes, or say what the folders stand for: "
                    "fit(..., classnames={folder: name})."
                )
            trainer.train()
        device = model.clip_model.logit_scale.device
        model.clip_model, model.prompt_learner = trainer.model.clip_model, trainer.model.prompt_learner
        model.classnames, model.preprocess = names, trainer.model.preprocess
        model.autocast = trainer.model.autocast
        _calibrate(model, checked(trainer.calibration, "fit"))
        model.method = method = trainer.model.method
        ready(model.to(device))
        method.trained_on = trained_on(model.prompt_learner.identity, trainer.run_identity(), place.name)
        contents = {
            RESULT_FILE: {"format": 1, "results": trainer.test_results, "calibration": trainer.calibration},
            SAMPLE_FILE: trainer.dm.dataset.sample.content(),
        }
        method.files = {name: json.dumps(content, indent=4) for name, content in contents.items()}

    def save_pretrained(
        self, model: PromptedCLIP, folder: str | PathLike[str], *, classifier: bool = False
    ) -> None:
        """See `PromptedCLIP.save_pretrained`.

        Args:
            classifier: also writes the classes' text features, so that no text encoder is needed to use them.
        """
        saved_folder.write(model, self, Path(folder).expanduser(), classifier)

    def push_to_hub(
        self,
        model: PromptedCLIP,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        classifier: bool = False,
        message: str = "",
    ) -> str:
        """See `PromptedCLIP.push_to_hub`.

        Args:
            repo_id: "user/name"; made if there is none.
            private: whether a new one is; by default as the account says.
            token: by default the one that `hf auth login` has kept.
            classifier: as of `save_pretrained`.
            message: of the commit.
        """
        hub.check_repo_id(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(model, folder, classifier=classifier)
            return hub.upload(folder, repo_id, private, token, message or f"Upload {self.name}")


def trained_on(identity: Mapping[str, Any], run: Mapping[str, Any] | None, dataset: str) -> dict[str, Any]:
    """What a model was trained on, as `config.json` says it.

    Args:
        identity: the learner's.
        run: the run's, if it is known.
        dataset: its name.
    """
    data = identity.get("data") or {}
    return {
        "dataset": dataset,
        "dataset_name": data.get("DATASET.NAME"),
        "classnames": identity.get("classnames"),
        "classes": data.get("DATASET.SUBSAMPLE_CLASSES"),
        "shots": data.get("DATASET.NUM_SHOTS"),
        "seed": data.get("SEED"),
        "sample_sha256": data.get("sample_sha256"),
        "images_sha256": ((run or {}).get("parts") or {}).get("trained_images"),
    }


def _calibrate(model: PromptedCLIP, calibration: dict[str, Any] | None) -> None:
    model.calibration = calibration
    model.temperature = 1.0 if calibration is None else float(calibration["temperature"])


# --- loading ------------------------------------------------------------------------------------------------


def load(
    source: str | PathLike[str],
    *,
    weights: str | PathLike[str] = "",
    device: str | torch.device | None = None,
    precision: str | None = None,
    epoch: int | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> PromptedCLIP:
    """A trained model, frozen and in evaluation mode, of a run, of a saved folder, or of the hub.

    Nothing of the training photos is needed. What the hub has comes into its own cache.

    >>> from trainers import MaPLe, load
    >>> MaPLe.from_clip("ViT-Shapes/8", ["red circle", "blue square"]).save_pretrained(folder)
    >>> load(folder).classnames
    ['red circle', 'blue square']

    Args:
        source: the folder of a run (`--output-dir` of train.py), one of `save_pretrained`, or "user/name".
        weights: a file of CLIP's weights, in place of those that the backbone's name stands for.
        device: by default a GPU where there is one.
        precision: by default that of the run.
        epoch: of a run, the one to load; by default the best or the last.
        revision: of the hub: a branch, a tag or a commit.
        token: of the hub; by default the one that `hf auth login` has kept.

    Raises:
        FileNotFoundError: there is no such run, folder or repository.
        ConnectionError: the hub cannot be reached.
        ValueError: a file is damaged, of another format, or of another CLIP than is here.
    """
    folder = Path(source).expanduser()
    device = chosen_device(device)
    if not folder.exists() and hub.is_repo_id(str(source)):
        folder = hub.download(str(source), revision, token)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise MissingFileError(
            f"{source} {what}. Give the folder of a run, one that save_pretrained wrote, or the id of a "
            "model on the hub, such as user/name. A checkpoint is read by from_clip(..., checkpoint=...)."
        )
    if (folder / saved_folder.CONFIG_FILE).is_file():
        return _from_saved(folder, weights, device, precision)
    if (folder / RESULT_FILE).is_file():
        return _from_run(folder, weights, device, precision, epoch)
    raise MissingFileError(
        f"{source} holds neither {RESULT_FILE}, as a finished run does, nor {saved_folder.CONFIG_FILE}, as a "
        "saved model does. Finish the run: its own command goes on from its last checkpoint."
    )


def _configured(trainer: str, source: Path) -> tuple[Any, type[CLIPPromptTrainer]]:
    """A configuration of defaults, and the class of a trainer by its name."""
    if trainer not in TRAINER_REGISTRY.registered_names():
        known = ", ".join(TRAINER_REGISTRY.registered_names())
        raise UserError(
            f"{source} is of the method {trainer!r}, which is not registered; there are {known}. Import the "
            "file that registers it first."
        )
    trainer_class = TRAINER_REGISTRY.get(trainer)
    if not hasattr(trainer_class, "without_data"):
        raise UserError(
            f"{source} is of {trainer}, which is no CLIPPromptTrainer: its model cannot be loaded."
        )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg, trainer_class


def _from_saved(
    folder: Path, weights: str | PathLike[str], device: torch.device, precision: str | None
) -> PromptedCLIP:
    saved = saved_folder.read(folder)
    cfg, trainer_class = _configured(saved.method, folder)
    _merge(cfg, saved.settings)
    cfg.MODEL.BACKBONE.PATH = os.path.expanduser(weights)
    if precision:
        cfg.TRAINER[trainer_class.settings_key()].PREC = precision
    with quiet(), _undisturbed():
        trainer, module = _built(trainer_class, cfg, checked_names(saved.classnames), saved.template, device)
    model = trainer.model
    saved.check_backbone(model.prompt_learner.identity["backbone_sha256"])
    saved.put_into(module)
    saved.put_classifier_into(model)
    model.temperature, model.calibration = saved.temperature, saved.calibration
    model.method.trained_on = saved.trained_on
    if trained := saved.trained_on:
        data = {"DATASET.NAME": trained.get("dataset_name")}
        model.prompt_learner.loaded_identity = {"classnames": trained.get("classnames") or [], "data": data}
    model.method.files = saved.files
    return ready(model)


def _from_run(
    folder: Path,
    weights: str | PathLike[str],
    device: torch.device,
    precision: str | None,
    epoch: int | None,
) -> PromptedCLIP:
    result = read_json(str(folder / RESULT_FILE))
    settings = result.get("settings") if isinstance(result, dict) else None
    if not isinstance(settings, dict):
        raise UserError(f"{folder / RESULT_FILE} holds no settings of a run; run train.py again.")
    for key, kind in OF_RUN.items():
        if not isinstance(result.get(key, kind()), kind):
            raise UserError(f"{folder / RESULT_FILE} is damaged: `{key}` is no {kind.__name__}.")
    load_plugins_of(result.get("command") or [])
    cfg, trainer_class = _configured(result.get("trainer", ""), folder)
    cfg.merge_from_other_cfg(settings)
    _merge(cfg, {"RESUME": "", "MODEL.INIT_WEIGHTS": ""})
    if weights:
        cfg.MODEL.BACKBONE.PATH = os.path.expanduser(weights)
    if precision:
        cfg.TRAINER[trainer_class.settings_key()].PREC = precision
    place = folder
    if result.get("eval_only") and result.get("model_dir"):
        place = Path(result["model_dir"])
        if not place.is_dir():
            raise MissingFileError(
                f"{folder} tested what lay in {place}, and there is no such folder from here; start where "
                "the run was started, or give the folder of the training."
            )
    names, template = _classes_of(result, trainer_class, folder)
    with quiet(), _undisturbed():
        trainer, module = _built(trainer_class, cfg, names, template, device)
    _register(trainer, module)
    model, method = trainer.model, trainer.model.method
    if trainer.get_model_names():
        with quiet():
            trainer.load_model(str(place), epoch=epoch)
        loaded = model.prompt_learner.loaded_identity or {}
        dataset = Path(loaded.get("own_path") or (loaded.get("data") or {}).get("DATASET.NAME") or "").name
        method.trained_on = trained_on(loaded, trainer.loaded_training, dataset)
    if epoch is None and _is_what_was_tested(trainer, result):
        _calibrate(model, checked(result.get("calibration"), str(folder / RESULT_FILE)))
    shared = {key: result[key] for key in SHARED if key in result}
    method.files = {RESULT_FILE: json.dumps(plain(shared), indent=4)}
    if (place / SAMPLE_FILE).is_file():
        method.files[SAMPLE_FILE] = (place / SAMPLE_FILE).read_text(encoding="utf-8")
    return ready(model)


def _is_what_was_tested(trainer: CLIPPromptTrainer, result: Mapping[str, Any]) -> bool:
    """Whether what was loaded is what the run tested, which may have been another epoch of another folder."""
    if not result.get("eval_only") or not trainer.get_model_names():
        return True
    tested = ((result.get("identity") or {}).get("parts") or {}).get("tested_model")
    return tested == (trainer.loaded_parts or {}).get("tested_model")


def _classes_of(result: Mapping[str, Any], trainer_class: Any, folder: Path) -> tuple[list[str], str]:
    """The class names and the template of a run; runs of version 0.2 and before say them in other places."""
    names, template = result.get("classnames"), result.get("template")
    if not names and not trainer_class.is_zero_shot and not result.get("eval_only"):
        names = _identity_in(folder, trainer_class).get("classnames")
    names = names or [dict(each).get("name") for each in result.get("per_class") or []]
    if not template:
        own = ((result.get("settings") or {}).get("DATASET") or {}).get("OWN") or {}
        template = own.get("TEMPLATE") or DEFAULT_TEMPLATE
        if trainer_class.is_zero_shot and result.get("dataset") not in OWN_DATA:
            raise UserError(
                f"{folder} is of a version that did not record the sentence of its classes; run train.py "
                "again."
            )
    if not names:
        raise UserError(f"{folder / RESULT_FILE} does not say its classes; run train.py again.")
    return checked_names(names), template


def _identity_in(folder: Path, trainer_class: Any) -> Mapping[str, Any]:
    """What the checkpoint of a run says that it is for; {} if it says nothing."""
    place = str(folder / trainer_class.model_name)
    state = load_checkpoint(os.path.join(place, file_to_load([place]))).get("state_dict") or {}
    found: Any = next((value for key, value in state.items() if key.endswith(IDENTITY)), {})
    return found if isinstance(found, Mapping) else {}


# --- what is printed, and random numbers ------------------------------------------------------------------


@contextlib.contextmanager
def quiet(warns: bool = False) -> Iterator[None]:
    """Within, nothing is printed; with `warns`, what would be a line of warning becomes a warning."""
    captured = io.StringIO()
    with redirect_stdout(captured):
        yield
    for line in captured.getvalue().splitlines() if warns else ():
        if line.startswith("Warning: "):
            warnings.warn(line.removeprefix("Warning: "), stacklevel=5)


class _Brief(io.TextIOBase):
    """Passes on the last line of each epoch, results and warnings."""

    LAST_BATCH = re.compile(r"epoch \[\d+/\d+\] batch \[(\d+)/(\1)\]")

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if line.startswith(("Warning", "* accuracy")) or self.LAST_BATCH.match(line):
                self.stream.write(f"{line}\n")
                self.stream.flush()
        return len(text)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Afterwards, the random generators are as they were."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng_state(state)
