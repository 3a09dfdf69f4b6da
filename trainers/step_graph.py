"""Forward and backward pass of a training step as one CUDA graph.

With a batch of 4, a GPU waits for Python to launch about a thousand kernels per step. They are the same in
each step: a CUDA graph captures them once and launches them together, on tensors that stay at their
addresses. The optimizer is not captured, so that its learning rate may be a Python number.
See https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dassl.utils import restore_rng_state, rng_state
from dassl.utils.distributed import get_world_size
from prompted_clip.kept import KeptImages

if TYPE_CHECKING:
    from .clip_trainer import CLIPPromptTrainer

WARM_UPS = 3  # eager steps before the capture: libraries choose their kernels, caches are filled
SMALLEST_SHARE = 1e-3  # of the largest gradient: smaller ones are compared as if they were this large
NOTICE = "The training step is not replayed as a CUDA graph: "

Result = TypeVar("Result")
Losses = TypeVar("Losses", bound=Callable[..., dict[str, Tensor]])


def cuda_graph_safe(losses: Losses) -> Losses:
    """Marks a method's `losses` as the same computation in each step, so that a CUDA graph may replay it.

    Such losses read no Python number that changes, such as the epoch, draw no random numbers, and never sync
    with the GPU, as `.item()` does. Losses that override them have to be marked themselves.
    """
    losses.cuda_graph_safe = True  # type: ignore[attr-defined]
    return losses


replayable = cuda_graph_safe  # its earlier name


class StepOutput(NamedTuple):
    """What a step gives to the optimizer and to the log."""

    loss: Tensor
    terms: dict[str, Tensor]
    gradients: list[Tensor | None]  # None for what the loss does not depend on


Step = Callable[..., StepOutput]


class GraphedStep:
    """A step that runs eagerly `WARM_UPS` times, and is then replayed as a CUDA graph.

    In the first step after that, and in the first one after each `begin_epoch`, the step runs eagerly and as
    a graph, and the eager gradients are used. If the two differ, or the step cannot be captured, all steps
    run eagerly from then on, and one line says why. Inputs of other shapes than the first always run eagerly.

    Args:
        step: of tensors, such as images `(batch 3 height width)` and labels `(batch)`; changes nothing.
        tolerance: of gradients, relative to the largest number of each.
        device: where it runs.
    """

    def __init__(self, step: Step, tolerance: float, device: torch.device) -> None:
        self.step = step
        self.tolerance = tolerance
        self.device = device
        self.graph: CapturedGraph | None = None
        self.disabled = False
        self.checked = False  # in this epoch
        self._shapes: list[torch.Size] | None = None
        self._warm_ups = 0

    def begin_epoch(self) -> None:
        """Has the next replay compared again: a test may have changed the memory that the graph reads."""
        self.checked = False

    def __call__(self, *inputs: Any) -> StepOutput:
        if not self.disabled and not all(isinstance(each, (Tensor, KeptImages)) for each in inputs):
            self._disable("parse_batch_train does not give tensors alone")
        if self.disabled:
            return self._eager(inputs)
        shapes = [each.shape for each in inputs]
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            return self._eager(inputs)
        if self._warm_ups < WARM_UPS:
            self._warm_ups += 1
            with side_stream(self._stream):
                return self.step(*inputs)
        if self.graph is None or not self.checked:
            return self._check(inputs)
        return self.graph.replay(inputs)

    @cached_property
    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _check(self, inputs: Sequence[Tensor]) -> StepOutput:
        """The eager step; beside it, the graph is captured, if there is none yet, replayed and compared."""
        output = self._eager(inputs)
        if self.disabled or not all(
            bool(each.isfinite().all()) for each in output.gradients if each is not None
        ):
            return output  # not finite: a loss scaler looks for its scale, or the run ends
        before, why = rng_state(), ""
        try:
            self.graph = self.graph or CapturedGraph(self.step, inputs, self._stream)
            error = difference(self.graph.replay(inputs).gradients, output.gradients)
            if not error <= self.tolerance:  # NaN is an error, too
                why = f"its gradients differ by {error:.1e} from those of the eager step"
        except RuntimeError as failure:
            why = f"it cannot be captured ({first_line(failure)})"
        restore_rng_state(before)
        self.checked = True
        if why:
            self._disable(why)
        return output

    def _eager(self, inputs: Sequence[Any]) -> StepOutput:
        try:
            return self.step(*inputs)
        except torch.OutOfMemoryError:
            if self.graph is None:
                raise
        self._disable("it leaves too little memory for eager steps")
        return self.step(*inputs)

    def _disable(self, why: str) -> None:
        self.disabled = True
        self.graph = None
        print(NOTICE + why)


class CapturedGraph:
    """A step captured with its inputs, and replayed with others of the same shapes.

    Raises:
        RuntimeError: the step cannot be captured.
    """

    def __init__(self, step: Step, inputs: Sequence[Tensor], stream: torch.cuda.Stream | None) -> None:
        self.inputs = [each.clone() for each in inputs]

        def captured() -> tuple[Tensor, list[str], list[Tensor | None]]:
            output = step(*self.inputs)
            metrics = torch.stack([output.loss, *output.terms.values()])
            return metrics, list(output.terms), output.gradients

        self._launch, (self._metrics, self._names, self._gradients) = capture(captured, stream)

    def replay(self, inputs: Sequence[Tensor]) -> StepOutput:
        """The step for other inputs. The next replay overwrites its gradients, but not its loss and terms."""
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        self._launch()
        loss, *terms = self._metrics.clone().unbind()
        return StepOutput(loss, dict(zip(self._names, terms, strict=True)), list(self._gradients))


@contextmanager
def side_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Queues work on `stream`, as CUDA graphs ask for before a capture; does nothing on a CPU."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def capture(
    compute: Callable[[], Result], stream: torch.cuda.Stream | None
) -> tuple[Callable[[], None], Result]:
    """Captures without computing: what launches the graph, and the tensors that it writes into.

    Raises:
        RuntimeError: there is something that cannot be captured; the device is usable again.
    """
    assert stream is not None
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream(stream.device)
    gc.collect()  # a reference cycle may keep an earlier step's autograd graph, and with it another stream
    try:
        # Errors of this thread alone: others may pin the memory of the next batches meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = compute()
    except RuntimeError:
        torch.cuda.set_stream(current)  # torch 2.11, for one, stays on the other stream
        torch.cuda.synchronize(current.device)
        # The generator may believe that it is being captured still; its copy does not.
        generator = torch.cuda.default_generators[current.device.index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph.replay, result


# --- a trainer's step ---------------------------------------------------------------------------------------


def graphed_step_of(trainer: CLIPPromptTrainer) -> GraphedStep | None:
    """The trainer's losses and gradients as a CUDA graph; None where they run eagerly.

    That is so on a CPU, where `TRAIN.CUDA_GRAPHS` is off, and where the line that is printed says why.
    """
    if trainer.device.type != "cuda" or trainer.cfg.TRAIN.CUDA_GRAPHS == "off":
        return None
    if why := why_eager(trainer):
        print(NOTICE + why)
        return None
    tolerance = 1e-3 if trainer.precision.name == "fp32" else 5e-2  # sums in another order
    return GraphedStep(partial(gradient_step, trainer), tolerance, trainer.device)


def why_eager(trainer: CLIPPromptTrainer) -> str:
    """Why the trainer's step must not be captured; "" if it may."""
    from .clip_trainer import CLIPPromptTrainer  # which imports this module

    name = type(trainer).__name__
    if get_world_size() > 1:
        return "several processes share a batch"
    if not getattr(trainer.losses, "cuda_graph_safe", False):
        return f"{name}.losses is not marked as cuda_graph_safe, see trainers/step_graph.py"
    for part in ("model_backward_and_update", "model_zero_grad", "model_backward", "model_update"):
        if getattr(type(trainer), part) is not getattr(CLIPPromptTrainer, part):
            return f"{name} has a {part} of its own"
    if any(each._backward_hooks or each._post_accumulate_grad_hooks for each in trainer.optimised_tensors()):
        return "there are hooks on gradients"
    return ""


def gradient_step(trainer: CLIPPromptTrainer, *inputs: Tensor) -> StepOutput:
    """The loss of a batch and its gradients, multiplied by the loss scaler; changes nothing."""
    loss, terms = trainer.summed_losses(*inputs)
    learned = trainer.optimised_tensors()
    gradients = torch.autograd.grad(trainer.scaler.scale(loss), learned, allow_unused=True)
    terms = {name: each.detach() for name, each in terms.items()}
    return StepOutput(loss.detach(), terms, own_grads(gradients, learned))


def own_grads(gradients: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of `torch.autograd.grad`, each with the strides of its tensor, no two in the same memory."""
    addresses: set[int] = set()
    own: list[Tensor | None] = []
    for gradient, tensor in zip(gradients, tensors, strict=True):
        if gradient is not None:
            if gradient.stride() != tensor.stride() or gradient.data_ptr() in addresses:
                gradient = torch.empty_like(tensor, requires_grad=False).copy_(gradient)
            addresses.add(gradient.data_ptr())
        own.append(gradient)
    return own


def difference(ours: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> float:
    """The largest error of a gradient, relative to its own largest number; infinite where one is missing."""
    if [each is None for each in ours] != [each is None for each in right]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(ours, right, strict=True) if a is not None and b is not None]
    if not pairs:
        return 0.0
    errors, scales = (
        torch.stack([each.abs().max().float() for each in column])
        for column in ([a - b for a, b in pairs], [b for _, b in pairs])
    )
    smallest = max(SMALLEST_SHARE * float(scales.max()), torch.finfo(torch.float32).tiny)
    return float((errors / scales.clamp(min=smallest)).max())


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
