"""DistributedDataParallel for a method's losses: `torchrun --nproc-per-node N train.py ...`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dassl.utils.distributed import this_process

Losses = Callable[..., dict[str, Tensor]]


def wrap_ddp(losses: Losses, learned: Iterable[nn.Parameter]) -> Losses:
    """`losses`, whose backward pass gives each process the mean of all processes' gradients.

    If each has an equal share of a batch and the losses are means over it, that is the gradient of the whole
    batch. All start with rank zero's tensors. Without torch.distributed, `losses` itself.

    Args:
        losses: of tensors, such as images `(batch 3 height width)` and labels `(batch)`.
        learned: the tensors that gradients are of.
    """
    if this_process()[1] == 1:
        return losses
    # Static: some learned tensors never get a gradient, such as MaPLe's prompts beyond an encoder's depth.
    return DistributedDataParallel(_Step(losses, learned), static_graph=True)


def is_first_process() -> bool:
    """Whether this is rank zero, which writes the files of a run."""
    return this_process()[0] == 0


class _Step(nn.Module):
    """The losses as the forward pass of a module, as DistributedDataParallel wants.

    Its parameters are what is learned alone, so that the frozen CLIP is not broadcast.
    """

    def __init__(self, losses: Losses, learned: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.losses = losses
        self.learned = nn.ParameterList(learned)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        return self.losses(*inputs)
