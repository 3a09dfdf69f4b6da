"""Losses of a batch that several processes share: `torchrun --nproc-per-node N train.py ...`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dassl.utils.distributed import this_process

Losses = Callable[..., dict[str, Tensor]]


def of_all_processes(losses: Losses, learned: Iterable[nn.Parameter]) -> Losses:
    """`losses`, such that the backward pass gives each process the mean of all processes' gradients.

    Where each has an equal share of a batch and the losses are means over it, that is the gradient of the
    whole batch. All start with the first one's tensors. Without torch.distributed, `losses` itself.

    Args:
        losses: of tensors, such as images `(batch 3 height width)` and labels `(batch)`.
        learned: the tensors that gradients are of.
    """
    if this_process()[1] == 1:
        return losses
    # Static: some learned tensors never get a gradient, such as MaPLe's prompts beyond an encoder's depth.
    return DistributedDataParallel(_Step(losses, learned), static_graph=True)


def is_first_process() -> bool:
    """Whether this process writes what one writes for all: rank zero."""
    return this_process()[0] == 0


class _Step(nn.Module):
    """The losses as a forward pass, which is what DistributedDataParallel takes.

    It holds what is learned alone: the frozen CLIP, the same in all processes, is not sent around.
    """

    def __init__(self, losses: Losses, learned: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.losses = losses
        self.learned = nn.ParameterList(learned)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        return self.losses(*inputs)
