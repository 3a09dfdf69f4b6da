"""What a prompt-learning method learns, and the sentences that it learns them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import Adapters
from .errors import UserError
from .kept import KeptImages
from .model import CLIP
from .prompting import Prompts
from .shared_prefix import SharedPrefixText

MAX_CONTEXT_WORDS = 4  # longer contexts start from noise, as published
NOISE_STD = 0.02  # of all prompts that start from noise


class PromptLearner(nn.Module):
    """All that a method learns, and nothing else; frozen sentences and plain CLIP unless a method says so.

    A method overrides what it changes: tokens (`text_prompts`, `image_prompts`), what is added inside the
    encoders (`text_adapters`, `image_adapters`), the features, or the logits.

    Args:
        sentences: of all classes; see `class_sentences`.
    """

    # Whether text prompts are made of the image features (CoCoOp), so that each image has its own.
    conditional = False
    # Whether the learned tensors belong to these very classes.
    class_specific = False

    def __init__(self, sentences: SharedPrefixText) -> None:
        super().__init__()
        self.sentences = sentences
        # What this learner is for, kept in its state dict: plain names, numbers and lists of them.
        self.identity: dict = {}
        self.loaded_identity: dict = {}

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts | None:
        """Prompts of the text encoder; `image_features`, `(batch feature)`, for a conditional learner."""
        return None

    def image_prompts(self) -> Prompts | None:
        """Prompts of the image encoder."""
        return None

    def text_adapters(self) -> Adapters | None:
        """What is added inside the text encoder, or put in place of its tensors."""
        return None

    def image_adapters(self) -> Adapters | None:
        """What is added inside the image encoder, or put in place of its tensors."""
        return None

    def place_prompts(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sentences `(class length)` of `sentences.template` as the text encoder gets them, and the slots.

        Slots are the positions of the prompts, `(class n)`; None for those after SOS.
        """
        return tokens, None

    def text_features(self, clip_model: CLIP, image_features: Tensor | None = None) -> Tensor:
        """Text features of any norm: `(class feature)`, or `(batch class feature)` if conditional."""
        return self.sentences.encode(clip_model, self.text_prompts(image_features), self.text_adapters())

    def image_head(self, features: Tensor) -> Tensor:
        """What is learned after the image encoder: its features → those to compare with text; of any norm.

        Args:
            features: in at least float32, as `image_features` gives them.
        """
        return features

    def image_features(self, clip_model: CLIP, image: Tensor | KeptImages) -> Tensor:
        """Image features of any norm: `(batch 3 height width)` → `(batch feature)`, or what `logits` takes.

        Several features of an image, `(batch n feature)`, are normalised each. Images that were kept as they
        enter the first block that something learns in are handed on to CLIP in place of pixels.
        """
        return clip_model.encode_image(image, self.image_prompts(), self.image_adapters())

    def logit_scale(self, clip_model: CLIP) -> Tensor:
        """What cosines are multiplied by: CLIP's own, a single number."""
        return clip_model.logit_scale.exp()

    def logits(self, clip_model: CLIP, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosines, and the model's bias if it has one; in at least float32: `(batch class)`.

        Args:
            image_features: `(batch feature)`, normalised.
            text_features: `(class feature)`, or `(batch class feature)` where each image has its own;
                normalised.
        """
        if text_features.dim() == 3:
            cosines = torch.einsum("bf,bcf->bc", image_features, text_features)
        else:
            cosines = image_features @ text_features.t()
        logits = self.logit_scale(clip_model) * cosines
        return at_least_float32(logits if clip_model.logit_bias is None else logits + clip_model.logit_bias)

    def state_for(
        self, clip_model: CLIP, state: Mapping[str, Any], before: Sequence[str], now: Sequence[str]
    ) -> Mapping[str, Any]:
        """A state dict of the classes `before` as one of the classes `now`, which this learner is for.

        For a learner that keeps something for each class, and knows what stands for another class.
        """
        return state

    def is_asked_what_it_learned(self) -> bool:
        """Whether the classes and the dataset are those trained on, as far as the checkpoint says.

        The authors' checkpoints do not say; they are of the dataset at hand, and not of its new classes.
        """
        here, trained = self.identity, self.loaded_identity
        data = here.get("data", {})
        if not trained:
            return data.get("DATASET.SUBSAMPLE_CLASSES") != "new"
        same_dataset = trained.get("data", {}).get("DATASET.NAME") == data.get("DATASET.NAME")
        return same_dataset and sorted(trained.get("classnames", ())) == sorted(here.get("classnames", ()))

    def make_room(self, state: Mapping[str, Any]) -> None:
        """Called before a state is compared with this learner's, where shapes depend on the training images.

        Args:
            state: under the learner's own names; may be anything still.
        """

    def get_extra_state(self) -> dict:
        return self.identity

    def set_extra_state(self, state: dict) -> None:
        """Keeps what the loaded checkpoint was for; the trainer compares it."""
        self.loaded_identity = state


class IndependentPromptLearner(PromptLearner):
    """Tokens of either encoder, or of both, that know nothing of each other.

    Deep prompts beyond an encoder's blocks do not exist, as in the reference.

    Args:
        words: stand before the class name; the text context starts from them.
        text_tokens: learned tokens a depth of the text encoder; 0 for a fixed sentence.
        text_depth: how many blocks they enter.
        image_tokens: learned tokens a depth of the image encoder; 0 for none.
        image_depth: how many blocks they enter.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        words: str,
        text_tokens: int = 0,
        text_depth: int = 1,
        image_tokens: int = 0,
        image_depth: int = 1,
    ) -> None:
        context = None
        if text_tokens:
            context, words = initial_context(clip_model, text_tokens, words)
        super().__init__(class_sentences(clip_model, classnames, f"{words} {{}}.", text_tokens))
        self.words = words
        self.ctx = self.image_tokens = None
        if context is not None:
            text = clip_model.transformer
            self.ctx = nn.Parameter(context)
            self.deep_text = noise(min(text_depth, text.layers) - 1, text_tokens, text.width)
        if image_tokens:
            image = clip_model.vision_transformer().transformer
            (self.image_tokens,) = noise(1, image_tokens, image.width)
            self.deep_image = noise(min(image_depth, image.layers) - 1, image_tokens, image.width)

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts | None:
        return None if self.ctx is None else Prompts(self.ctx, list(self.deep_text))

    def image_prompts(self) -> Prompts | None:
        return None if self.image_tokens is None else Prompts(self.image_tokens, list(self.deep_image))


class TemplateEnsemble(PromptLearner):
    """Nothing is learned: a class is the mean over several hand-written sentences.

    Args:
        templates: such as "a photo of a {}.".
        normalise_each: whether each sentence's features are brought to length 1 before the mean.
        keep_underscores: whether `_` in a class name stays, and is no space.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        templates: Sequence[str],
        normalise_each: bool = True,
        keep_underscores: bool = False,
    ) -> None:
        each = [
            SharedPrefixText.of(
                clip_model,
                tokenize_classes(clip_model, classnames, template, keep_underscores),
                template=template,
            )
            for template in templates
        ]
        super().__init__(each[0])
        self.ensemble = nn.ModuleList(each)
        self.normalise_each = normalise_each
        self.keep_underscores = keep_underscores

    @property
    def differs(self) -> str:
        """What sets it apart from a mean of features of length 1, underscores being spaces; "" if nothing."""
        if self.keep_underscores:
            return "keep the underscores of class names"
        return (
            "" if self.normalise_each or len(self.ensemble) == 1 else "have a mean of features of any length"
        )

    def text_features(self, clip_model: CLIP, image_features: Tensor | None = None) -> Tensor:
        total = None
        for sentences in self.ensemble:
            assert isinstance(sentences, SharedPrefixText)
            features = at_least_float32(sentences.encode(clip_model))
            if self.normalise_each:
                features = F.normalize(features, dim=-1)
            total = features if total is None else total + features
        assert total is not None
        return total / len(self.ensemble)


class FrozenText(TemplateEnsemble):
    """A `TemplateEnsemble` whose text features are computed once: for what is learned after both encoders."""

    base_text_features: Tensor | None  # (class feature), of any norm

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("base_text_features", None, persistent=False)

    def text_features(self, clip_model: CLIP, image_features: Tensor | None = None) -> Tensor:
        if self.base_text_features is None:
            with torch.no_grad():
                self.base_text_features = super().text_features(clip_model)
        return self.base_text_features


def at_least_float32(x: Tensor) -> Tensor:
    """Widens what half-precision encoders give: what is computed with it shall add no rounding."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def noise(depths: int, count: int, width: int) -> nn.ParameterList:
    """Learned tokens that start from N(0, 0.02): `depths` of `(count width)`."""
    tokens = [nn.Parameter(torch.empty(count, width)) for _ in range(depths)]
    for each in tokens:
        nn.init.normal_(each, std=NOISE_STD)
    return nn.ParameterList(tokens)


def initial_context(
    clip_model: CLIP, n_ctx: int, ctx_init: str, most_words: int = MAX_CONTEXT_WORDS
) -> tuple[Tensor, str]:
    """The context vectors to start from, `(n_ctx width)`, and the words that stand before a class name.

    The words of `ctx_init` are used if there are some and `n_ctx` is at most `most_words`: the vectors are
    the embeddings of its first `n_ctx` tokens, and the sentence keeps all of it. N_CTX=2 learns "a photo";
    "of a" stays text, as published. Otherwise the vectors are drawn from N(0, 0.02) and the words are
    "X X ...".

    Source: `MultiModalPromptLearner.__init__` in the reference's `trainers/maple.py`.
    """
    if ctx_init and n_ctx <= most_words:
        words = ctx_init.replace("_", " ")
        tokens, first = clip_model.tokenize(words, truncate=True), clip_model.first_slot
        given = int(clip_model.ends(tokens)) - first
        if given < n_ctx:
            print(
                f'Warning: "{words}" has {given} tokens, the context {n_ctx}: as in the reference, the '
                "learned tokens overwrite the first tokens of the class names"
            )
        words_of_context = tokens[0, first : first + n_ctx].to(clip_model.token_embedding.weight.device)
        return clip_model.embed_words(words_of_context).float(), words
    (vectors,) = noise(1, n_ctx, clip_model.transformer.width)
    return vectors.detach(), " ".join(["X"] * n_ctx)


def class_sentences(
    clip_model: CLIP, classnames: Sequence[str], template: str, prompts: int = 0
) -> SharedPrefixText:
    """The sentence of each class, such as "a photo of a german shorthaired."

    Args:
        template: has `{}` where the class name is to stand.
        prompts: how many positions after SOS belong to learned tokens.

    Raises:
        ValueError: a sentence is longer than the text encoder takes, or ends before the prompts do.
    """
    tokens = tokenize_classes(clip_model, classnames, template)
    return SharedPrefixText.of(clip_model, tokens, prompts, template)


def tokenize_classes(
    clip_model: CLIP, classnames: Sequence[str], template: str, keep_underscores: bool = False
) -> Tensor:
    """Token ids of a template with each class name in it, `(class length)`.

    Args:
        keep_underscores: whether `_` in a class name stays, and is no space.

    Raises:
        ValueError: a sentence is longer than the text encoder takes, named by its class; or the template has
            not one place for the name.
    """
    if template.count("{}") != 1:
        raise UserError(
            f"The sentence is {template[:200]!r}; it needs {{}} once, where the class name stands. A context "
            "to start from, such as CTX_INIT, is given without it."
        )
    rows = []
    for name in classnames:
        sentence = template.replace("{}", name if keep_underscores else name.replace("_", " "))
        try:
            rows.append(clip_model.tokenize(sentence))
        except RuntimeError as error:
            raise UserError(
                f"The sentence of class {name!r} is longer than the {clip_model.context_length} tokens that "
                f'the text encoder takes: "{sentence}". Shorten the class name, or the context before it.'
            ) from error
    tokens = torch.cat(rows)
    clip_model.check_words(tokens)
    return tokens
