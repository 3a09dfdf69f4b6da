"""The trainer that all methods are subclasses of: all that a method does not define itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TrainerBase, TrainerX
from dassl.engine.bounds import check_numbers
from dassl.engine.ddp import Losses, select_device, wrap_ddp
from dassl.engine.identity import sha256_of
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint
from dassl.utils.distributed import get_world_size, is_rank_zero
from prompted_clip import load_model
from prompted_clip.errors import UserError
from prompted_clip.kept import KeptImages
from prompted_clip.model import CLIP, Transformer
from prompted_clip.prompt_learner import PromptLearner, TemplateEnsemble, at_least_float32
from prompted_clip.prompted_clip import PromptedCLIP
from prompted_clip.shared_prefix import SharedPrefixText
from prompted_clip.tensor_files import misfit, unusual

from . import features
from .checkpoints import IDENTITY, check_fit, check_same_run, identity_of, learned_tensors
from .precision import PRECISIONS, Precision
from .pretrained import Method, from_clip, preprocessing
from .settings import check_input, check_settings
from .step_graph import GraphedStep, cuda_graph_safe, graphed_step_of
from .templates import template_of

SAMPLE_FILE = "few_shot.json"


class CLIPPromptTrainer(TrainerX):
    """Loads CLIP, freezes it, and trains the parameters of the method's learner.

    A method is a subclass with `settings`, `build_learner`, and `losses` where it has more than cross
    entropy; `@TRAINER_REGISTRY.register()` makes it known under its name.
    """

    # Defaults of cfg.TRAINER.<NAME>, NAME being the class's in capitals.
    settings: ClassVar[dict[str, Any]] = {
        # `fp32`; `fp16` or `bf16`: CLIP's matrices in that type; `amp`: torch's autocast. What is learned is
        # float32 in each.
        "PREC": "fp32",
    }
    # Folder of the checkpoints, as published.
    model_name: ClassVar[str] = "prompt_learner"
    # Whether published keys begin with "prompt_learner.": so where the reference registers the whole model.
    prefixed_keys: ClassVar[bool] = True
    # Puts CLIP and the learner together.
    model_class: ClassVar[type[PromptedCLIP]] = PromptedCLIP
    # Settings that a test may give other values than the training had.
    test_settings: ClassVar[tuple[str, ...]] = ()
    # Whether `losses` take several views of an image, as many as DATALOADER.K_TRANSFORMS says.
    takes_views: ClassVar[bool] = False
    # Whether training runs on the fixed views of DATALOADER.VIEWS; a method may need their features alone.
    trains_on_views: ClassVar[bool] = True
    # Whether what is learned belongs to the classes trained on, as `class_specific` of the learner says.
    class_specific: ClassVar[bool] = False
    # Whether it changes what is inside the blocks, which are this project's own then.
    adapts_blocks: ClassVar[bool] = False
    # Nothing is learned, and no shots are drawn: seed and shots do not matter.
    is_zero_shot: ClassVar[bool] = False
    # What `from_clip` and `fit` take where nothing else is said, beside `configuration.COMMON`: the settings
    # published for base to novel, by their dotted keys.
    recipe: ClassVar[dict[str, Any]] = {}

    model: PromptedCLIP  # type: ignore[assignment]  # the engine's own is a SimpleNet

    # --- what a method defines -----------------------------------------------------------------------------

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        """The learner, on the device of `clip_model`, which is in float32."""
        raise NotImplementedError

    @cuda_graph_safe
    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, summed for the backward pass; each is logged under its name.

        Losses marked as `cuda_graph_safe` are replayed as a CUDA graph on a GPU, ten times as fast. A method
        that takes more of a batch has more parameters here, as `parse_batch_train` gives them.

        Args:
            images: `(batch 3 height width)`; `(view batch 3 height width)` where `takes_views` is set. Of
                fixed views, what the model takes in place of images.
            labels: `(batch)`.
        """
        return {"loss_ce": F.cross_entropy(self.model(images), labels)}

    def has_image_tokens(self, cfg) -> bool:
        """Whether the method puts tokens into the image encoder, which is a ViT then."""
        return False

    @classmethod
    def belongs_to_classes(cls, cfg) -> bool:
        """Whether what is learned belongs to the classes trained on, so that no others can be tested."""
        return cls.class_specific

    @classmethod
    def oracle(cls, cfg) -> str:
        """What a test with these settings is told beside the images, in words; "" for nothing.

        Such as "which half of the classes is asked". result.json records it, and tables mark it.
        """
        return ""

    @classmethod
    def selected_on(cls, settings: Mapping[str, Any]) -> str:
        """The images by whose accuracy a training chose what is tested: "val"; "" where it is the last step.

        Args:
            settings: of the training, by dotted keys. result.json records the answer, and tables mark it.
        """
        return "val" if settings.get("TEST.FINAL_MODEL") == "best_val" else ""

    # --- the configuration ------------------------------------------------------------------------------

    @classmethod
    def settings_key(cls) -> str:
        return cls.__name__.upper()

    def check_cfg(self, cfg) -> None:
        """Refuses settings that cannot work, before anything is read or written.

        Raises:
            ValueError: names the key, its value and what is allowed.
        """
        self.check_setting(cfg, "PREC", one_of=PRECISIONS)
        check_settings(cfg, self.takes_views)
        name = cfg.MODEL.BACKBONE.NAME
        if self.has_image_tokens(cfg) and name.startswith("RN"):
            raise UserError(self._needs_vit_message(f"MODEL.BACKBONE.NAME is {name!r}"))

    def check_setting(
        self, cfg, key: str, at_least: int | None = None, one_of: Sequence[Any] | None = None, why: str = ""
    ) -> None:
        """Raises a `ValueError` if the trainer's setting `key` is below `at_least` or none of `one_of`.

        Args:
            why: what the least value is for.
        """
        value = cfg.TRAINER[self.settings_key()][key]
        where = f"TRAINER.{self.settings_key()}.{key} is {value!r}"
        if at_least is not None and value < at_least:
            raise UserError(f"{where}; allowed is {at_least} or more ({why}).")
        if one_of is not None and value not in one_of:
            raise UserError(f"{where}; allowed are {', '.join(map(str, one_of))}.")

    @property
    def own_settings(self):
        """This trainer's node, cfg.TRAINER.<NAME>."""
        return self.cfg.TRAINER[self.settings_key()]

    @classmethod
    def from_clip(cls, backbone: str, classnames: Sequence[str], **options: Any) -> PromptedCLIP:
        """CLIP with this method for some classes, untrained; frozen, and in evaluation mode.

        >>> from trainers import MaPLe
        >>> model = MaPLe.from_clip("ViT-Shapes/8", ["red circle", "blue square"])
        >>> model.classnames
        ['red circle', 'blue square']

        Args:
            backbone: one of `prompted_clip.available_models()`, or "open_clip:ARCHITECTURE/TAG".
            classnames: one or more; no two may be one sentence for CLIP.
            options: see `trainers.pretrained.from_clip`: `weights`, `device`, `precision`, `template`,
                `config`, `settings`.

        Raises:
            FileNotFoundError: there is no such file of weights.
            ConnectionError: the weights could not be downloaded.
            ValueError: a name, a class name or a setting cannot be meant.
        """
        return from_clip(cls, backbone, classnames, **options)

    @classmethod
    def without_data(cls, cfg: Any, classnames: Sequence[str], template: str) -> CLIPPromptTrainer:
        """A trainer that knows classes and no images: it builds models, and can neither train nor test.

        Raises:
            ValueError: a setting that cannot be meant.
        """
        trainer = cls.__new__(cls)
        TrainerBase.__init__(trainer)
        check_numbers(cfg)
        trainer.check_cfg(cfg)
        trainer.cfg, trainer.device = cfg, select_device(cfg)
        dataset = SimpleNamespace(classnames=list(classnames), template=template)
        trainer.dm = SimpleNamespace(dataset=dataset)  # type: ignore[assignment]
        return trainer

    def _needs_vit_message(self, backbone: str) -> str:
        return (
            f"{backbone}, a ResNet: {type(self).__name__} puts tokens or adapters into the image encoder and "
            "needs a ViT, such as ViT-B/16."
        )

    # --- building ---------------------------------------------------------------------------------------

    def load_clip(self) -> CLIP:
        """The frozen CLIP that the configuration names, in float32."""
        backbone = self.cfg.MODEL.BACKBONE
        weights = f", weights: {backbone.PATH}, heads and activation of the name" if backbone.PATH else ""
        print(f"Loading CLIP (backbone: {backbone.NAME}{weights})")
        clip_model = load_model(backbone.NAME, backbone.PATH).requires_grad_(False)
        self._check_encoders(clip_model)
        return clip_model

    def _check_encoders(self, clip_model: CLIP) -> None:
        """Refuses encoders that what the method learns cannot enter."""
        backbone, method = self.cfg.MODEL.BACKBONE, type(self).__name__
        if self.adapts_blocks and not clip_model.takes_adapters():
            raise UserError(
                f"MODEL.BACKBONE.NAME is {backbone.NAME!r}: {method} changes what is inside the blocks, and "
                "needs those of CLIP. Methods of prompts (MaPLe, PromptSRC, CoOp, ...) and heads (TaskRes, "
                "CLIPAdapter, ...) may take this backbone: docs/backbones.md."
            )
        if self.has_image_tokens(self.cfg) and not hasattr(clip_model.visual, "transformer"):
            kind = getattr(clip_model.visual, "kind", "")
            if not kind:
                raise UserError(self._needs_vit_message(f"MODEL.BACKBONE.PATH {backbone.PATH} is"))
            raise UserError(
                f"MODEL.BACKBONE.NAME is {backbone.NAME!r}, whose image encoder is a {kind}, without a "
                f"sequence of tokens that {method} could put prompts into. Methods of the text (CoOp, "
                "KgCoOp, CoCoOp, TCP) and heads (TaskRes, CLIPAdapter, ...) take it: docs/backbones.md."
            )

    def build_clip(self, clip_model: CLIP) -> nn.Module:
        """Puts CLIP and the learner together as `self.model`; returns the module whose tensors are saved."""
        cfg = self.cfg
        check_input(cfg, clip_model)
        print("Building custom CLIP")
        learner = self.build_learner(clip_model, self.dm.dataset.classnames)
        learner.identity = identity_of(self, clip_model)

        print("Turning off gradients in both the image and the text encoder")
        self.precision = Precision(self.own_settings.PREC, self.device)
        self.scaler = self.precision.scaler
        if self.precision.name == "fp16" and self.device.type == "cpu":
            print("Warning: fp16 is slow on a CPU; bf16 or fp32 is meant for it")
        self.precision.cast(clip_model)
        self.model = self.model_class(clip_model, learner, cfg.MODEL.TEXT_CHUNK).to(self.device)
        self.model.classnames = list(self.dm.dataset.classnames)
        self.model.preprocess = preprocessing(cfg)
        self.model.autocast = self.precision.autocast
        self.model.method = Method(type(self), cfg, template_of(self.dm.dataset))
        # Not the whole model: what is saved and optimised is what is learned.
        return nn.ModuleDict({"prompt_learner": learner}) if self.prefixed_keys else learner

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if self.cfg.DATALOADER.VIEWS and self.trains_on_views and self.train_loader_x is not None:
            self.train_loader_x = features.ViewLoader(self.train_loader_x, self)

    @cached_property
    def view_features(self) -> features.KeptViews:
        """CLIP's features of fixed views of all training images; one of each where DATALOADER.VIEWS is 0."""
        return features.views_of(self, features.FEATURES)

    @cached_property
    def training_views(self) -> features.KeptViews:
        """The fixed views of all training images, as far as the image encoder is constant."""
        self.place = features.place_of(self.model)
        return self.view_features if self.place == features.FEATURES else features.views_of(self, self.place)

    def build_model(self) -> None:
        cfg = self.cfg
        saved = self.build_clip(self.load_clip())
        learner = self.model.prompt_learner
        learned = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        print(f"Parameters to be updated: {sorted(learned)}")
        print(f"Learned parameters: {sum(each.numel() for each in learned.values()):,}")
        if learned:
            self.optim = build_optimizer(learner, cfg.OPTIM, self.parameter_groups(learner))
            self.sched = build_lr_scheduler(self.optim, cfg.OPTIM, self.schedule_phases())
            self.register_model(self.model_name, saved, self.optim, self.sched)
        elif any(True for _ in saved.parameters()):  # that are made of the images without a step
            self.register_model(self.model_name, saved)
        if cfg.MODEL.INIT_WEIGHTS:
            self.start_from(cfg.MODEL.INIT_WEIGHTS)

    def parameter_groups(self, learner: PromptLearner) -> list[Any] | None:
        """Groups of parameters with learning rates or weight decays of their own; None for one group of all.

        Each is a dict with `params`, and with what differs from OPTIM's: `lr`, `weight_decay`, ...
        """
        return None

    def begin_phase(self, phase: int) -> None:
        """As the engine's; the step is captured anew, since other tensors may learn from here on."""
        vars(self).pop("graphed_step", None)
        vars(self).pop("shared_losses", None)

    def start_from(self, path: str) -> None:
        """Loads what a checkpoint that fits this run has learned, as a test of it does."""
        if not self._models:
            raise UserError(f"MODEL.INIT_WEIGHTS is {path}, but {type(self).__name__} learns nothing.")
        content = dict(self.published_state(load_checkpoint(path)))
        checkpoint = content if "state_dict" in content else {"state_dict": content}
        state = self.checked_state(self.model_name, checkpoint, path)
        self._models[self.model_name].load_state_dict(state, strict=False)
        print(f'Successfully loaded pretrained weights from "{path}"')

    def published_state(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a file holds, in the form of a checkpoint: `state_dict`, by this project's keys.

        For a method whose authors write other files; what is in no known form is returned as it is.
        """
        return content

    @classmethod
    def more_files(cls, model: PromptedCLIP, backbone: str) -> dict[str, bytes]:
        """More files of a saved folder, by their names, such as an adapter in the form of another library.

        Args:
            backbone: the name of the CLIP that the model is made of.
        """
        return {}

    def warn_of_unused_depth(self, key: str, tower: str, transformer: Transformer) -> None:
        """Warns of prompts beyond an encoder's blocks; the reference takes such depths, and so do we.

        Args:
            key: the setting of the depth.
            tower: "text" or "image".
        """
        if self.own_settings[key] > transformer.layers:
            print(
                f"Warning: TRAINER.{self.settings_key()}.{key} is {self.own_settings[key]}, but the {tower} "
                f"encoder has {transformer.layers} blocks: the deep prompts from depth "
                f"{transformer.layers + 1} on are not used there"
            )

    # --- training and testing ---------------------------------------------------------------------------

    def train(self) -> None:  # type: ignore[override]
        if get_world_size() > 1 and isinstance(self.train_loader_x, features.ViewLoader):
            raise UserError(
                f"DATALOADER.VIEWS is {self.cfg.DATALOADER.VIEWS}, and {get_world_size()} processes cannot "
                "share a training on fixed views. Train with python train.py, without torchrun."
            )
        super().train()

    def before_epoch(self) -> None:
        """Before the first epoch, writes the sample that is trained on beside the results.

        Where val images choose the epoch of a training on features, they are encoded once, too.
        """
        super().before_epoch()
        graphed_step = vars(self).get("graphed_step")  # made when it is needed first
        if graphed_step is not None:
            graphed_step.begin_epoch()
        sample = getattr(self.dm.dataset, "sample", None)
        if self.epoch != self.start_epoch:
            return
        if sample is not None and is_rank_zero():
            sample.save(os.path.join(self.output_dir, SAMPLE_FILE))
        on_features = isinstance(self.train_loader_x, features.ViewLoader)
        on_features = on_features and features.place_of(self.model) == features.FEATURES
        if on_features and self._keeps_best() and self.val_loader:
            self.val_loader = features.encoded(self, self.val_loader)

    @classmethod
    def can_share_batches(cls) -> bool:
        """Whether several processes can train together: not where a method has its own training step."""
        steps = ("train", "run_epoch", "forward_backward", "model_backward_and_update")
        return all(getattr(cls, step) is getattr(CLIPPromptTrainer, step) for step in steps)

    @cached_property
    def shared_losses(self) -> Losses:
        """`losses`, whose gradients are averaged over all processes."""
        learned = [each for each in self.model.parameters() if each.requires_grad]
        return wrap_ddp(self.losses, learned)

    @cached_property
    def graphed_step(self) -> GraphedStep | None:
        """Losses and gradients as a CUDA graph; None where they run eagerly."""
        return graphed_step_of(self)

    def forward_backward(self, batch) -> dict[str, Any]:
        inputs = self.parse_batch_train(batch)
        if self.graphed_step is None:
            loss, terms = self.summed_losses(*inputs)
            self.model_backward_and_update(loss)
        else:
            loss, terms, gradients = self.graphed_step(*inputs)
            self.detect_anomaly(loss)
            self.model_zero_grad()
            for tensor, gradient in zip(self.optimised_tensors(), gradients, strict=True):
                tensor.grad = gradient
            self.optimizers_step(self.get_model_names())
        summary = {"loss": loss, **(terms if len(terms) > 1 else {})}
        if self.schedules_by_iteration() or self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        # From a GPU, tensors: the engine syncs when it prints.
        return {name: each.detach() if each.is_cuda else each.item() for name, each in summary.items()}

    def summed_losses(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its terms.

        Args:
            inputs: what `parse_batch_train` gives.
        """
        with self.precision.autocast():
            terms = self.shared_losses(*inputs)
            return torch.stack(list(terms.values())).sum(), terms

    def model_backward_and_update(self, loss: Tensor, names=None) -> None:
        """A backward pass and a step, through the loss scaler where there is one."""
        names = self.get_model_names(names)
        self.model_zero_grad(names)
        self.detect_anomaly(loss)
        self.scaler.scale(loss).backward()
        self.optimizers_step(names)

    def optimizers_step(self, names: Sequence[str]) -> None:
        for name in names:
            if self._optims[name] is not None:
                self.scaler.step(self._optims[name])
        self.scaler.update()

    def optimised_tensors(self) -> list[Tensor]:
        """What is learned now, of all optimizers."""
        groups = [group for optim in self._optims.values() if optim for group in optim.param_groups]
        return [each for group in groups for each in group["params"] if each.requires_grad]

    # --- batches and tests --------------------------------------------------------------------------------

    def parse_batch_train(self, batch) -> tuple[Tensor, ...]:
        """What `losses` take: images and labels, on the device.

        Of fixed views, they are there already. A method that takes more of a batch (`img0`, `img2`, `index`,
        ...) appends it; tensors alone, so that a CUDA graph can replay the step.
        """
        images, labels = batch["img"], batch["label"]
        if isinstance(images, KeptImages):
            return images, labels  # type: ignore[return-value]
        views = images if isinstance(images, (list, tuple)) else [images]
        moved = [each.to(self.device, non_blocking=True) for each in views]
        images = torch.stack(moved) if self.takes_views else moved[0]
        return images, labels.to(self.device, non_blocking=True)

    def model_inference(self, input: Tensor) -> Tensor:
        with self.precision.autocast():
            return self.model(input)

    def hint_of_overflow(self) -> str:
        """As the engine's; where CLIP computes in float16, first of all an overflow."""
        if self.own_settings.PREC not in ("fp16", "amp"):
            return super().hint_of_overflow()
        key = f"TRAINER.{self.settings_key()}.PREC"
        return f" float16 may overflow: set {key} to bf16 or fp32.{super().hint_of_overflow()}"

    @torch.no_grad()
    def test(self, split=None, **kwargs):
        self.set_model_mode("eval")  # before text features are computed: there may be dropout
        with self.precision.autocast(), self.model.cached_text_features():
            return super().test(split, **kwargs)

    # --- the frozen CLIP, for methods that stay near it ---------------------------------------------------

    @torch.no_grad()
    def frozen_image_features(self, images: Tensor | KeptImages) -> Tensor:
        """CLIP's own features of images `(batch 3 height width)`, of length 1: `(batch feature)`.

        Those of fixed views are computed once, and taken in place of images.
        """
        if isinstance(images, KeptImages):
            found = images.features
        else:
            found = images if images.dim() == 2 else self.model.clip_model.encode_image(images)
        return F.normalize(at_least_float32(found), dim=-1)

    @torch.no_grad()
    def frozen_text_features(self, templates: Sequence[str], normalise_each: bool = True) -> Tensor:
        """CLIP's own features of the classes, of length 1: `(class feature)`; see `TemplateEnsemble`."""
        clip_model, classnames = self.model.clip_model, self.dm.dataset.classnames
        sentences = TemplateEnsemble(clip_model, classnames, templates, normalise_each).to(self.device)
        return F.normalize(sentences.text_features(clip_model), dim=-1)

    # --- checkpoints ------------------------------------------------------------------------------------

    def fitting_state(self, name: str, checkpoint: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """What a checkpoint, of this project or of the reference, holds of what this run learns.

        Raises:
            ValueError: it does not fit this run; lists what differs. Nothing was loaded then.
        """
        state_dict = self._of_these_classes(checkpoint.get("state_dict", {}))
        own = {key.removeprefix("prompt_learner."): each for key, each in state_dict.items()}
        self.model.prompt_learner.make_room(own)
        wanted = self._models[name].state_dict()
        self._check_kinds(state_dict, wanted, path)
        check_fit(path, state_dict, wanted, self.model)
        return learned_tensors(state_dict, wanted)

    def _of_these_classes(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """A state dict of other classes, as its identity says, as one of this run's; see `state_for`."""
        identity = next((value for key, value in state_dict.items() if key.endswith(IDENTITY)), None)
        before = identity.get("classnames") if isinstance(identity, Mapping) else None
        now = self.dm.dataset.classnames
        if not isinstance(before, list) or before == now:
            return state_dict
        return self.model.prompt_learner.state_for(self.model.clip_model, state_dict, before, now)

    @staticmethod
    def _check_kinds(state_dict: Mapping[str, Any], wanted: Mapping[str, Any], path: str) -> None:
        # Of all tensors, as those of CLIP are compared, and of what the checkpoint says that it is for.
        for key, value in state_dict.items():
            like = wanted.get(key, value)
            if key.endswith(IDENTITY):
                fault = identity_fault(value, like)
            elif isinstance(value, Tensor):
                fault = misfit(value, like) if isinstance(like, Tensor) else ""
                fault = fault or (f"is a {unusual(value)} tensor" if unusual(value) else "")
            else:
                fault = ""
            if fault:
                raise UserError(f"The checkpoint {path} does not fit this run: {key} {fault}.")

    def model_parts(self) -> dict[str, str]:
        """CLIP's weights, and the sentences as tokens."""
        learner = self.model.prompt_learner
        sentences = [each for each in learner.modules() if isinstance(each, SharedPrefixText)]
        return {
            "model": learner.identity.get("backbone_sha256", ""),
            "sentences": sha256_of([[each.tokens.tolist(), each.slots.tolist()] for each in sentences]),
        }

    def check_resumable(self, name: str, checkpoint: Mapping[str, Any], directory: str) -> None:
        """Refuses to continue a run with other images, classes or another seed.

        Raises:
            ValueError: lists what differs.
        """
        super().check_resumable(name, checkpoint, directory)
        states = checkpoint["state_dict"].items()
        identity = next((value for key, value in states if key.endswith(IDENTITY)), None)
        if isinstance(identity, Mapping):
            check_same_run(directory, identity, self.model.prompt_learner.identity)


def identity_fault(saved: Any, here: Any) -> str:
    """Where what a checkpoint says that it is for is not of the form of what this run would say."""
    if not isinstance(saved, Mapping):
        return "is not a dictionary"
    for key, value in here.items() if isinstance(here, Mapping) else ():
        kind = (
            Mapping if isinstance(value, Mapping) else list if isinstance(value, list) else (str, int, float)
        )
        if saved.get(key) is not None and not isinstance(saved[key], kind):
            return f"has a {type(saved[key]).__name__} as {key}"
    return ""
