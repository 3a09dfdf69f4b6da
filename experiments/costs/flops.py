"""Floating-point operations (FLOPs) by torch's own counter.

The counter takes a multiply-add for two operations, and counts matrix products and convolutions only: norms,
activations and softmax are left out. Only shapes go through a copy of the model, on fake tensors. Attention
is counted as its two matrix products, because the counter takes the fused attention of a CPU for nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prompted_clip import PromptedCLIP, SharedPrefixText
from trainers.clip_trainer import CLIPPromptTrainer


def _linear_flops(_x: object, weight: Sequence[int], *_: object, out_shape: Sequence[int]) -> int:
    return 2 * math.prod(out_shape) * weight[1]


# oneDNN's linear layer, which torch's counter does not know; not there where torch was built without it.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
CUSTOM = {} if ONEDNN_LINEAR is None else {ONEDNN_LINEAR: _linear_flops}


def count_flops(compute: Callable[[], object]) -> int:
    """FLOPs of `compute()`, which is run."""
    with FlopCounterMode(display=False, custom_mapping=CUSTOM) as counter, sdpa_kernel(SDPBackend.MATH):
        compute()
    return counter.get_total_flops()


@contextmanager
def fake_copy(model: PromptedCLIP) -> Iterator[PromptedCLIP]:
    """A copy of `model`, within a mode in which tensors have shapes and no values."""
    model = copy.deepcopy(model)
    model.clip_model.embedded_words = None  # which words are embedded is a value
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield model


def image_and_text_flops(model: PromptedCLIP, image: Tensor) -> tuple[int, int]:
    """FLOPs of inference: of one image with its logits, and of the text of all classes.

    The text of a conditional learner is encoded for each image, that of others once per evaluation.

    Args:
        image: `(1 3 height width)`.
    """
    with torch.no_grad(), fake_copy(model) as fake:
        total = count_flops(lambda: fake(image))
        features = fake.encode_image(image)
        text = count_flops(lambda: fake.encode_text(features))
    return total - text, text


def step_flops(trainer: CLIPPromptTrainer, batch: dict[str, Tensor]) -> int:
    """FLOPs of a training step's forward and backward pass; of CLIPPromptTrainer's step, made of `losses`."""
    inputs = trainer.parse_batch_train(batch)
    with torch.no_grad(), trainer.precision.autocast():
        trainer.losses(*inputs)  # so that what is computed once, as a teacher's features, is not counted
    with fake_copy(trainer.model) as fake:
        shadow = copy.copy(trainer)
        shadow.model = fake
        for module in fake.modules():
            if isinstance(module, SharedPrefixText):
                module.kept.keeps_fake = True
        with torch.no_grad(), shadow.precision.autocast():
            shadow.losses(*inputs)

        def step() -> None:
            with shadow.precision.autocast():
                loss = torch.stack(list(shadow.losses(*inputs).values())).sum()
            loss.backward()

        return count_flops(step)


def has_own_step(trainer: CLIPPromptTrainer) -> bool:
    """Whether the trainer has not `CLIPPromptTrainer`'s step, so that `step_flops` does not hold."""
    steps = ("forward_backward", "summed_losses", "model_backward_and_update")
    if not any(each.requires_grad for each in trainer.model.parameters()):
        return True  # there is none, as in Tip-Adapter without training
    return any(getattr(type(trainer), step) is not getattr(CLIPPromptTrainer, step) for step in steps)
