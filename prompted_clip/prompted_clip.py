"""A frozen CLIP with a learner's prompts and adapters in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from os import PathLike
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .errors import UserError
from .kept import KeptImages
from .model import CLIP
from .predictions import Images, predict
from .prompt_learner import PromptLearner, at_least_float32
from .shared_prefix import AUTOMATIC, SharedPrefixText

# Text that depends on the image is encoded for as many images at once as make this many tokens of classes.
MOST_TOKENS = 1 << 15
Model = TypeVar("Model", bound="PromptedCLIP")


class PromptedCLIP(nn.Module):
    """Images → logits over the classes that the learner has sentences for.

    The learner's parameters have the names of published checkpoints: `prompt_learner.ctx`, ... It is moved to
    CLIP's device. CLIP stays in evaluation mode: what a ResNet's batch norms have counted is frozen, too.

    A model of a method's `from_clip`, of `trainers.load`, or of a trainer, also predicts, is trained on a
    folder of photos, and is saved: see `predict`, `fit`, `save_pretrained` and `push_to_hub`.

    Args:
        text_chunk: classes that run through the text encoder at once, see `SharedPrefixText`.

    Attributes:
        classnames: of the classes, in the order of the logits.
        preprocess: PIL image → `(3 height width)`, as the backbone wants it.
        method: what made the model, `trainers.pretrained.Method`; None for one put together by hand.
        temperature: what `predict` divides logits by.
        calibration: what validation images told of the probabilities, as `config.json` says it; None for a
            model that was not calibrated.
    """

    classnames: Sequence[str] = ()
    preprocess: Callable[[Image.Image], Tensor] | None = None
    method: Any = None
    temperature: float = 1.0
    calibration: dict[str, Any] | None = None
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(self, clip_model: CLIP, prompt_learner: PromptLearner, text_chunk: int = AUTOMATIC) -> None:
        super().__init__()
        for module in prompt_learner.modules():
            if isinstance(module, SharedPrefixText):
                module.chunk = text_chunk
        self.prompt_learner = prompt_learner.to(clip_model.logit_scale.device)
        self.clip_model = clip_model
        self._text_features: Tensor | None = None
        self._kept_features: tuple[Any, Tensor] | None = None
        self._kept_model: tuple[Any, PromptedCLIP] | None = None

    def train(self, mode: bool = True) -> PromptedCLIP:
        super().train(mode)
        self.clip_model.eval()
        return self

    def encode_image(self, image: Tensor | KeptImages) -> Tensor:
        """`(batch 3 height width)` → normalised image features, `(batch feature)`.

        What CLIP's own image encoder gave earlier is taken in place of images: features, `(batch feature)`,
        or states, as `KeptImages`.
        """
        learner = self.prompt_learner
        if isinstance(image, Tensor) and image.dim() == 2:
            features = image
        else:
            features = learner.image_features(self.clip_model, image)
        return F.normalize(learner.image_head(at_least_float32(features)), dim=-1)

    def encode_text(self, image_features: Tensor | None = None) -> Tensor:
        """Normalised text features, `(class feature)`; `(batch class feature)` if made of the image's."""
        if self._text_features is not None:
            return self._text_features
        features = self.prompt_learner.text_features(self.clip_model, image_features)
        return F.normalize(at_least_float32(features), dim=-1)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Logits of normalised features, `(batch class)`; see `PromptLearner.logits`."""
        return self.prompt_learner.logits(self.clip_model, image_features, text_features)

    def forward(self, image: Tensor | KeptImages) -> Tensor:
        """`(batch 3 height width)` → logits in at least float32, `(batch class)`."""
        image_features = self.encode_image(image)
        if not self.prompt_learner.conditional:
            return self.logits(image_features, self.encode_text())
        images_at_once = max(1, MOST_TOKENS // self.prompt_learner.sentences.suffix_tokens)
        return torch.cat(
            [self.logits(part, self.encode_text(part)) for part in image_features.split(images_at_once)]
        )

    @contextmanager
    def cached_text_features(self) -> Iterator[None]:
        """Within, text features that do not depend on the image are computed once, without gradients."""
        if not self.prompt_learner.conditional:
            with torch.no_grad():
                self._text_features = self.encode_text()
        try:
            yield
        finally:
            self._text_features = None

    # --- use ------------------------------------------------------------------------------------------------

    def predict(
        self,
        images: Images,
        classnames: Sequence[str] | None = None,
        *,
        batch_size: int = 64,
        skip_broken: bool = False,
        progress: bool | None = None,
        coverage: float | None = None,
    ) -> Any:
        """Classes and their probabilities, the best first.

        Args:
            images: one image, as a path, a PIL image or a tensor `(3 height width)` that `preprocess` made;
                or many: a folder of any depth, a tensor `(batch 3 height width)`, or an iterable of images.
            classnames: other classes than the model's own, without training. A method that learned something
                for each class refuses them.
            batch_size: images that run through the encoder at once.
            skip_broken: whether a photo that cannot be read gets a `Prediction` with an `error` instead of
                ending the whole.
            progress: whether a progress bar is shown; by default on a terminal, if it takes over 2 seconds.
            coverage: between 0 and 1; each `Prediction` then has a `set` of classes, which holds the true one
                of at least this share of photos like the validation photos (split conformal prediction,
                https://arxiv.org/abs/2107.07511). The model has to be calibrated.

        Returns:
            A `Prediction` for one image, a list of them for many. A folder's are in the order of the paths.

        Raises:
            FileNotFoundError: there is no such image or folder.
            ValueError: an image cannot be read, a class name cannot be meant, or a coverage is asked of a
                model that was not calibrated for these classes.
            FloatingPointError: a model whose weights are not finite.
        """
        model = self if classnames is None else self._for(classnames)
        return predict(model, images, batch_size, skip_broken, progress, coverage)

    def with_classnames(self: Model, classnames: Sequence[str]) -> Model:
        """The model for other classes: the same CLIP, and a copy of what was learned.

        It is not calibrated; its temperature is 1 where that of the model was fitted on what it learned.

        Raises:
            ValueError: something was learned for each class, or a class name cannot be meant.
        """
        return self._known_method().with_classnames(self, classnames)

    def fit(self: Model, photos: str | PathLike[str], **options: Any) -> Model:
        """Trains on photos, and returns the model itself. It starts anew, whatever was learned before.

        Args:
            photos: a folder with a folder of photos for each class, or a table (csv); docs/own_data.md.
            options: see `trainers.pretrained.Method.fit`: `shots`, `epochs`, `seed`, ...

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the photos are not of the model's classes, or a setting cannot be meant.
        """
        self._known_method().fit(self, photos, **options)
        return self

    def save_pretrained(self, folder: str | PathLike[str], **options: Any) -> None:
        """Writes what was learned, and all that using it takes, into a folder: docs/sharing.md.

        Args:
            options: see `trainers.pretrained.Method.save_pretrained`.

        Raises:
            FloatingPointError: what was learned is not finite. Nothing is written then.
        """
        self._known_method().save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub, and returns its address.

        Args:
            options: see `trainers.pretrained.Method.push_to_hub`.

        Raises:
            ConnectionError: the hub cannot be reached, or refuses.
        """
        return self._known_method().push_to_hub(self, repo_id, **options)

    def _known_method(self) -> Any:
        if self.method is None:
            raise UserError(
                "This PromptedCLIP was put together by hand, so that its method is not known. Make it by "
                "from_clip, such as trainers.MaPLe.from_clip, or by trainers.load."
            )
        return self.method

    def _for(self, classnames: Sequence[str]) -> PromptedCLIP:
        """`with_classnames`, whose last model is kept."""
        key = (tuple(classnames), self.temperature, self._state())
        if self._kept_model is None or self._kept_model[0] != key:
            self._kept_model = (key, self.with_classnames(classnames))
        return self._kept_model[1]

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """`(batch 3 height width)` → probabilities in float32, `(batch class)`; in evaluation mode.

        Text features are kept until something in the model changes.
        """
        training = self.training
        self.eval()
        try:
            with self.autocast():
                if not self.prompt_learner.conditional:
                    if self._kept_features is None or self._kept_features[0] != self._state():
                        self.keep_text_features(self.encode_text())
                    assert self._kept_features is not None
                    self._text_features = self._kept_features[1]
                logits = self(images.to(self.clip_model.logit_scale.device)).float()
        finally:
            self._text_features = None
            self.train(training)
        return (logits / self.temperature).softmax(dim=-1)

    def keep_text_features(self, features: Tensor) -> None:
        """Has `probabilities` use these text features, `(class feature)`, until the model changes."""
        self._kept_features = (self._state(), features)

    def _state(self) -> list[tuple[int, int, torch.dtype]]:
        """Changes with each tensor that is replaced, or written into."""
        tensors = (*self.parameters(), *self.buffers())
        return [(each.data_ptr(), each._version, each.dtype) for each in tensors]
