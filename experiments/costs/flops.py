"""Floating-point operations by torch's own counter, and a method computed the way the reference computes it.

The counter takes a multiply-add for two operations, and counts matrix products and convolutions only: norms,
activations and softmax are left out, as everywhere. What is counted is not computed: only shapes go through
the model. Attention is taken apart into its two products, because the counter does not know the fused
attention of a CPU and would count it as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prompted_clip import Prompts, Sentences
from prompted_clip.kernels import ONEDNN_LINEAR
from prompted_clip.model import CLIP, ResidualAttentionBlock, Transformer, VisionTransformer
from prompted_clip.prompted_clip import PromptedCLIP
from prompted_clip.prompting import behind
from trainers.clip_trainer import CLIPPromptTrainer


def _of_linear(_x: object, weight: Sequence[int], *_: object, out_shape: Sequence[int]) -> int:
    return 2 * math.prod(out_shape) * weight[1]


# Operations of what torch's counter does not know.
UNKNOWN = {} if ONEDNN_LINEAR is None else {ONEDNN_LINEAR: _of_linear}


def count_flops(compute: Callable[[], object]) -> int:
    """Operations of `compute()`, which is run."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter, sdpa_kernel(SDPBackend.MATH):
        compute()
    return counter.get_total_flops()


@contextmanager
def shapes_only(model: PromptedCLIP) -> Iterator[None]:
    """Within, tensors have shapes and no values, and nothing is computed; `model` is as before afterwards."""
    clip_model = model.clip_model
    embedded, clip_model.embedded_words = clip_model.embedded_words, None  # which words there are is a value
    # What is made once and kept would be without values afterwards.
    masks = [(block, block.attn_mask) for block in clip_model.transformer.blocks()]
    sentences = [each for each in model.modules() if isinstance(each, Sentences)]
    layouts = {each: each.layouts for each in sentences if hasattr(each, "layouts")}
    for each in layouts:
        each.layouts = {}
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        clip_model.embedded_words = embedded
        for block, mask in masks:
            block.attn_mask = mask
        for each, kept in layouts.items():
            each.layouts = kept


def image_and_text_flops(model: PromptedCLIP, image: Tensor) -> tuple[int, int]:
    """Operations of inference: those of one image with its logits, and those of all classes' text.

    The text of a conditional learner is computed for each image anew, that of others once per evaluation.

    Args:
        image: `(1 3 height width)`.
    """
    with torch.no_grad(), shapes_only(model):
        total = count_flops(lambda: model(image))
        features = model.encode_image(image)
        text = count_flops(lambda: model.encode_text(features))
    return total - text, text


def has_own_step(trainer: CLIPPromptTrainer) -> bool:
    """Whether the trainer does not take the step of `CLIPPromptTrainer`, which is made of its `losses`."""
    return type(trainer).forward_backward is not CLIPPromptTrainer.forward_backward


def step_flops(
    trainer: CLIPPromptTrainer, batch_of: Callable[[int], dict[str, Tensor]]
) -> Callable[[int], int]:
    """Number of images → operations of a training step, forward and backward, without taking it.

    Counted with 1, 2 and 3 images. Operations grow in proportion to the images, or with their square where a
    loss compares them all: the parabola through the three counts is exact for any number.

    Args:
        batch_of: number of images → a batch of them.
    """
    one, two, three = (operations_of_step(trainer, batch_of(images)) for images in (1, 2, 3))
    slope, bend = two - one, three - 2 * two + one
    return lambda images: one + (images - 1) * slope + (images - 1) * (images - 2) // 2 * bend


def operations_of_step(trainer: CLIPPromptTrainer, batch: dict[str, Tensor]) -> int:
    """Of a training step on a batch, forward and backward, without taking it."""
    images, labels = trainer.parse_batch_train(batch)

    def step() -> None:
        with trainer.precision.autocast():
            loss = torch.stack(list(trainer.losses(images, labels).values())).sum()
        loss.backward()

    trainer.model.zero_grad()
    try:
        with shapes_only(trainer.model):
            return count_flops(step)
    finally:
        trainer.model.zero_grad()  # gradients without values


# --- the reference's way ----------------------------------------------------------------------------------


def compute_as_reference(model: PromptedCLIP) -> None:
    """Makes `model` compute as the papers' code does, from now on: the same features with more work.

    Each class's sentence runs through the text encoder by itself, with all of its 77 tokens, and for each
    image if the learner is conditional. A ViT's last block computes all positions, though CLS alone is used.
    Blocks are their modules, called one after the other.
    """
    for parent in list(model.prompt_learner.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Sentences):
                setattr(parent, name, FullLengthSentences(child, model.clip_model.context_length))
    visual = model.clip_model.visual
    towers = [model.clip_model.transformer]
    if isinstance(visual, VisionTransformer):
        visual.transformer = EveryPosition(visual.transformer)
        towers.append(visual.transformer)
    for block in (block for tower in towers for block in tower.blocks()):
        block.__class__ = ReferenceBlock


class FullLengthSentences(Sentences):
    """Sentences that share nothing, each at CLIP's full length, as `CLIP.encode_text` takes them.

    Prompts stand behind SOS. Where CoOp has them elsewhere the work is the same, and the features are not.

    Args:
        length: tokens that CLIP's text encoder takes.
    """

    tokens: Tensor  # (class length)

    def __init__(self, sentences: Sentences, length: int) -> None:
        nn.Module.__init__(self)
        self.class_specific = sentences.class_specific
        tokens = sentences.own_tokens.new_zeros(len(sentences.places), length)
        tokens[:, : len(sentences.prefix_tokens)] = sentences.prefix_tokens
        tokens[sentences.own_classes, sentences.own_positions] = sentences.own_tokens
        self.register_buffer("tokens", tokens, persistent=False)
        # By their number a conditional learner's images are taken in parts.
        self.register_buffer("own_tokens", tokens.flatten(), persistent=False)

    def encode(self, clip_model: CLIP, prompts: Prompts | None = None) -> Tensor:
        """Text features, `(class feature)`; `(image class feature)` for prompts `(image n width)`."""
        contexts = None if prompts is None else prompts.tokens
        if prompts is None or contexts is None or contexts.dim() == 2 or self.class_specific:
            return clip_model.encode_text(self.tokens, prompts)
        each = [clip_model.encode_text(self.tokens, Prompts(own, prompts.deep)) for own in contexts]
        return torch.stack(each)


class ReferenceBlock(ResidualAttentionBlock):
    """OpenAI's block: torch's attention, and a perceptron of three modules."""

    def run(
        self, x: Tensor, tokens: Tensor | None = None, rows: int | None = None, at: int | None = None
    ) -> Tensor:
        """Every position."""
        assert rows is None
        assert at is None
        x = (x if tokens is None else behind(x, tokens)).transpose(0, 1)
        normed, mask = self.ln_1(x), self.mask(len(x), x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        x = x + nn.Sequential.forward(self.mlp, self.ln_2(x))
        return x.transpose(0, 1)


class EveryPosition(Transformer):
    """A transformer that computes each position in its last block too, whichever is wanted."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__(transformer.width, layers=0, heads=1)
        self.layers = transformer.layers
        self.resblocks = transformer.resblocks

    def run(
        self,
        x: Tensor,
        deep: Sequence[Tensor] = (),
        start: int = 1,
        position: int | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        return super().run(x if tokens is None else behind(x, tokens), deep, start)
