"""A training step's losses and gradients, replayed on a GPU as one CUDA graph.

With a batch of 4, a GPU waits for Python to launch some thousand kernels a step. They are the same in each
step: a CUDA graph records them once and launches them together, on tensors that stay in their places. The
optimizer is no part of it, so that its learning rate may be a number of the host.
See https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

WARM_UPS = 3  # steps before the recording: libraries choose their kernels, caches are filled
SMALLEST_SHARE = 1e-3  # of the largest gradient: below it, differences count as if it were so large

Result = TypeVar("Result")
Losses = TypeVar("Losses", bound=Callable[..., dict[str, Tensor]])


class Outcome(NamedTuple):
    """What a step gives to the optimizer and to the log; of several seeds, each loss and term is `(seed)`."""

    loss: Tensor
    terms: dict[str, Tensor]
    gradients: list[Tensor | None]  # None for what the loss does not depend on


class RandomState(NamedTuple):
    """What random numbers come next, on the host and on the device."""

    host: tuple[Any, ...]
    device: Tensor


Step = Callable[..., Outcome]


def replayable(losses: Losses) -> Losses:
    """Marks a method's `losses` as the same computation in each step.

    They do not depend on numbers of the host that change, such as the epoch; draw no random numbers; and do
    not wait for the device, as `.item()` does. Losses that override them have to be marked themselves.
    """
    losses.replayable = True  # type: ignore[attr-defined]
    return losses


class ReplayedStep:
    """A step, computed anew until it can be replayed, and for batches of another shape than the first one.

    The first replay, and the first one after each `begin_epoch`, is held beside the step computed anew, whose
    gradients are the ones used then. Where the two differ, or the step cannot be recorded, all steps are
    computed anew from then on, and one line says why.

    Args:
        step: of tensors, such as images `(batch 3 height width)` and labels `(batch)`; changes nothing.
        tolerance: of gradients, relative to the largest number of each.
        gpu: records and replays.
    """

    def __init__(self, step: Step, tolerance: float, gpu: Gpu) -> None:
        self.step = step
        self.tolerance = tolerance
        self.gpu = gpu
        self.recording: Recording | None = None
        self.given_up = False
        self._shapes: list[torch.Size] | None = None
        self._warm_ups = 0
        self._compared = False

    def begin_epoch(self) -> None:
        """The next replay is compared again: a test may have come between, and changed what it stands on."""
        self._compared = False

    def __call__(self, *batch: Tensor) -> Outcome:
        shapes = [each.shape for each in batch]
        self._shapes = self._shapes or shapes
        if self.given_up or shapes != self._shapes:
            return self.step(*batch)
        if self._warm_ups < WARM_UPS:
            self._warm_ups += 1
            if self._warm_ups < WARM_UPS:
                return self.gpu.aside(lambda: self.step(*batch))
            return self._last_warm_up(batch)
        if self.recording is None:
            self._record(batch)
        if self.recording is None:
            return self.step(*batch)
        if not self._compared:
            return self._compare(self.recording, batch)
        return self.recording.replay(batch)

    def _last_warm_up(self, batch: Sequence[Tensor]) -> Outcome:
        """A step that finds out what would go wrong, while it does no harm."""
        before = self.gpu.random_state()
        self.gpu.begin_measuring()
        outcome = None
        try:
            with self.gpu.without_waiting():
                outcome = self.gpu.aside(lambda: self.step(*batch))
        except RuntimeError as error:
            self._give_up(f"it cannot run without waiting for the GPU ({first_line(error)})")
        if outcome is None:  # behind the error, which holds what was begun on the other stream
            self.gpu.set_random_state(before)
            return self.step(*batch)
        if self.gpu.random_state().host != before.host:
            self._give_up("it draws random numbers on the host")
        elif not self.gpu.has_room():
            self._give_up("its tensors would fill more than a half of the GPU's free memory")
        return outcome

    def _record(self, batch: Sequence[Tensor]) -> None:
        before = self.gpu.random_state()
        try:
            self.recording = Recording(self.step, batch, self.gpu)
        except RuntimeError as error:
            self.gpu.recover()
            self.gpu.set_random_state(before)
            self._give_up(f"it cannot be recorded ({first_line(error)})")

    def _compare(self, recording: Recording, batch: Sequence[Tensor]) -> Outcome:
        outcome = self.step(*batch)
        if not all(bool(each.isfinite().all()) for each in outcome.gradients if each is not None):
            return outcome  # nothing to compare: a loss scaler looks for its scale, or the run ends
        before = self.gpu.random_state()
        error = difference(recording.replay(batch).gradients, outcome.gradients)
        self.gpu.set_random_state(before)
        self._compared = error <= self.tolerance
        if not self._compared:
            self._give_up(f"its gradients differ by {error:.1e} from those computed anew")
        return outcome

    def _give_up(self, why: str) -> None:
        self.given_up = True
        self.recording = None
        print(not_replayed(why))


class Recording:
    """A step recorded with a batch, to be replayed with others of its shape."""

    def __init__(self, step: Step, batch: Sequence[Tensor], gpu: Gpu) -> None:
        self.batch = [each.clone() for each in batch]

        def recorded() -> tuple[Tensor, list[str], list[Tensor | None]]:
            outcome = step(*self.batch)
            figures = torch.stack([outcome.loss, *outcome.terms.values()])
            return figures, list(outcome.terms), outcome.gradients

        self._launch, (self._figures, self._names, self._gradients) = gpu.record(recorded)

    def replay(self, batch: Sequence[Tensor]) -> Outcome:
        """The step for another batch. Its gradients, but not its figures, last until the next replay."""
        for own, given in zip(self.batch, batch, strict=True):
            own.copy_(given)
        self._launch()
        loss, *terms = self._figures.clone().unbind()
        return Outcome(loss, dict(zip(self._names, terms, strict=True)), list(self._gradients))


class Gpu:
    """The CUDA device as `ReplayedStep` needs it; tests put another in its place."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def aside(self, compute: Callable[[], Result]) -> Result:
        """Computes on a stream of its own, as is asked for before a recording."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = compute()
        current.wait_stream(self._stream)
        return result

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Within, what waits for the device raises a `RuntimeError`."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            # It may miss some that wait; those fail in the recording.
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Records, without computing: what computes anew, and the tensors that it will write into.

        Raises:
            RuntimeError: there is something that cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        # A cycle of references may keep a former step's autograd graph, and with it another stream.
        gc.collect()
        try:
            # Errors of this thread alone: others may pin the memory of the next batches meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                result = compute()
        finally:
            torch.cuda.set_stream(current)  # torch 2.11, for one, stays on the other where a recording fails
        return graph.replay, result

    def recover(self) -> None:
        """Brings the device back from a recording that failed."""
        torch.cuda.synchronize(self.device)
        # The generator may believe that it is being recorded still; its copy does not.
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())

    def begin_measuring(self) -> None:
        """What `has_room` knows of a step begins here."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def has_room(self) -> bool:
        """Whether a recording, which keeps a step's tensors, leaves as much for steps computed anew."""
        free, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_allocated(self.device)
        free += torch.cuda.memory_reserved(self.device) - kept
        return 2 * (torch.cuda.max_memory_allocated(self.device) - kept) <= free

    def random_state(self) -> RandomState:
        return RandomState(host_random_state(), torch.cuda.get_rng_state(self.device))

    def set_random_state(self, state: RandomState) -> None:
        set_host_random_state(state.host)
        torch.cuda.set_rng_state(state.device, self.device)


def host_random_state() -> tuple[Any, ...]:
    """Of Python's, numpy's and torch's generators; two of them can be compared."""
    _, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    return random.getstate(), (keys.tolist(), *rest), torch.get_rng_state().tolist()


def set_host_random_state(state: tuple[Any, ...]) -> None:
    python, (keys, *rest), of_torch = state
    random.setstate(python)
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(of_torch, dtype=torch.uint8))


def as_backward_leaves_them(
    gradients: Sequence[Tensor | None], tensors: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of `torch.autograd.grad`, each laid out as its tensor, and in memory of its own."""
    places: set[int] = set()
    own: list[Tensor | None] = []
    for gradient, tensor in zip(gradients, tensors, strict=True):
        if gradient is not None:
            if gradient.stride() != tensor.stride() or gradient.data_ptr() in places:
                gradient = torch.empty_like(tensor, requires_grad=False).copy_(gradient)
            places.add(gradient.data_ptr())
        own.append(gradient)
    return own


def difference(ours: list[Tensor | None], right: list[Tensor | None]) -> float:
    """The largest error of a gradient, relative to its own largest number; infinite for other tensors."""
    if len(ours) != len(right):
        return float("inf")
    scales = [0.0 if each is None or not each.numel() else float(each.abs().max()) for each in right]
    smallest = SMALLEST_SHARE * max(scales, default=0.0)
    errors = [0.0]
    for our, other, scale in zip(ours, right, scales, strict=True):
        if our is None and other is None:
            continue
        if our is None or other is None or our.shape != other.shape:
            return float("inf")
        error = float((our - other).abs().max()) if our.numel() else 0.0
        errors.append(error / max(scale, smallest, torch.finfo(torch.float32).tiny))
    return max(error if error == error else float("inf") for error in errors)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def not_replayed(why: str) -> str:
    """The line of notice."""
    return f"The training step is not replayed as a CUDA graph: {why}"
