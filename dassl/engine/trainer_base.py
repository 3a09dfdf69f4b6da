"""A training run: its hooks, its models, their checkpoints, and resuming."""

from __future__ import annotations

import os.path as osp
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dassl.engine import checkpoints
from dassl.engine.identity import tested_parts
from dassl.utils import load_checkpoint, restore_rng_state, rng_state, save_checkpoint, tolist_if_not
from dassl.utils.checkpoint import WAY_OUT, check_optimizer, check_scheduler, point_to, strip_module
from dassl.utils.checkpoint_parts import check_numbers, check_parts, check_random_states, check_scaler
from dassl.utils.distributed import barrier, gather, get_rank, get_world_size, is_rank_zero
from dassl.utils.logger import check_log
from dassl.utils.meters import DeferredMetrics
from prompted_clip.errors import UserError


def SummaryWriter(*args: Any, **kwargs: Any) -> Any:
    """TensorBoard's writer, imported when it is used: the import takes seconds, and may fail."""
    from torch.utils.tensorboard import SummaryWriter as Writer

    if not isinstance(threading.excepthook, _NotOfTensorBoard):
        threading.excepthook = _NotOfTensorBoard(threading.excepthook)
    return Writer(*args, **kwargs)


class _NotOfTensorBoard:
    """Has TensorBoard's thread print no traceback where the disk is full: who writes next is told."""

    def __init__(self, hook: Callable[[threading.ExceptHookArgs], Any]) -> None:
        self.hook = hook

    def __call__(self, args: threading.ExceptHookArgs) -> None:
        is_its_own = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_its_own and isinstance(args.exc_value, OSError)):
            self.hook(args)


class TrainerBase:
    """A run of epochs over registered models.

    A subclass implements `run_epoch` and `test`, and overrides the hooks that it needs.
    """

    epoch = 0  # counted from 0
    batch_idx = 0  # in this epoch, counted from 0
    num_batches = 0  # of an epoch
    scaler: Any = None  # a gradient scaler, where a trainer uses one
    best_result = float("-inf")  # on the validation images, so far
    _resumed_rng: Any = None  # random state to restore before the first epoch
    loaded_parts: Mapping[str, str] | None = None  # of a test's identity: what `load_model` loaded last
    loaded_training: Any = None  # the identity of the run that trained it, if its checkpoint holds one

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer: Any = None
        self._deferred = DeferredMetrics()

    @classmethod
    def can_share_batches(cls) -> bool:
        """Whether several processes can train one model, each on its share of a batch.

        They can where their step is that of one process with the whole batch, for which the trainer has to
        average the gradients. A subclass that does overrides it.
        """
        return False

    # Models

    def register_model(
        self, name: str = "model", model: Any = None, optim: Any = None, sched: Any = None
    ) -> None:
        """Registers a model for training, saving and loading. A name registered before is replaced.

        Args:
            name: also the name of its folder of checkpoints.
            model: the module.
            optim: its optimizer, if it is trained.
            sched: its learning-rate scheduler.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("Cannot register a model before super().__init__() is called")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Any = None) -> list[str]:
        """All registered names, or `names` (one or several) as a list.

        Raises:
            ValueError: a name is not registered.
        """
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise UserError(
                    f"No model is registered as {name!r}; there are {', '.join(self._models) or 'none'}."
                )
        return names

    def set_model_mode(self, mode: str = "train", names: Any = None) -> None:
        """Switches models to `train`, or to `eval` (also called `test`)."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"mode is {mode!r}; choose train, test or eval")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # Saving and loading

    def model_state(self, name: str) -> Mapping[str, Any]:
        """The tensors of a model that are saved, and that must be there on loading."""
        return self._unwrapped(name).state_dict()

    def _unwrapped(self, name: str) -> nn.Module:
        # Checkpoints hold the module inside of nn.DataParallel, so that one GPU reads what several wrote.
        model = self._models[name]
        return model.module if isinstance(model, nn.DataParallel) else model

    def checkpoint_state(self, name: str) -> dict[str, Any]:
        """All that a checkpoint holds of a model but the epoch and its result.

        All processes have to call it: it holds the random states of all.
        """
        optim, sched = self._optims[name], self._scheds[name]
        random_states = gather(rng_state())
        scaler_state = getattr(self.scaler, "state_dict", None)  # a fork's scaler may be anything
        return {
            "state_dict": self.model_state(name),
            "optimizer": None if optim is None else optim.state_dict(),
            "scheduler": None if sched is None else sched.state_dict(),
            "scaler": None if scaler_state is None else scaler_state(),
            "rng": random_states[0],
            **({"rng_of_others": random_states[1:]} if len(random_states) > 1 else {}),
            "best_result": float(self.best_result),
        }

    def restore_state(self, name: str, checkpoint: Mapping[str, Any]) -> None:
        """Restores what `checkpoint_state` saved of a model beside its tensors, where a run is resumed."""
        for part, key in ((self._optims[name], "optimizer"), (self._scheds[name], "scheduler")):
            if part is not None and checkpoint.get(key):
                part.load_state_dict(checkpoint[key])

    def fitting_state(self, name: str, checkpoint: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """The tensors of a checkpoint that are loaded into a model.

        Raises:
            ValueError: the checkpoint does not fit. Nothing has been changed then.
        """
        if "state_dict" not in checkpoint:
            raise UserError(f"{path} is no checkpoint of a model: it has no state_dict.")
        checkpoints.check_state(self.model_state(name), checkpoint["state_dict"], name, path)
        return checkpoint["state_dict"]

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Writes a checkpoint of each model, with all that resuming exactly needs.

        All processes have to call it; rank zero writes.

        Args:
            epoch: the one that is finished, counted from 0.
            directory: gets a folder for each model.
            is_best: also write it as `model-best.pth.tar`.
            val_result: its result on the validation images.
            model_name: name of the file, if not `model.pth.tar-<epoch>`.

        Raises:
            FloatingPointError: a loss or a learned number is not finite. Nothing is written then.
        """
        self.check_losses()
        check_log()
        for name in self.get_model_names():
            self._check_numbers(name, f"{name} in epoch {epoch + 1}, which is not saved")
        for name in self.get_model_names():
            state = self.checkpoint_state(name)
            state["epoch"] = epoch + 1
            state["val_result"] = None if val_result is None else float(val_result)
            if is_rank_zero():
                save_checkpoint(state, osp.join(directory, name), is_best=is_best, model_name=model_name)
        barrier()

    def _check_numbers(self, name: str, what: str) -> None:
        check_numbers(self.model_state(name), dict(self._unwrapped(name).named_parameters()), what)
        for state in getattr(self._optims[name], "state", {}).values():
            check_numbers(state, state, f"{what}: its optimizer")

    def resume_model_if_exist(self, directory: str) -> int:
        """Resumes from the newest epoch of which `directory` has a checkpoint of every model.

        Random states are restored when the first epoch begins.

        Returns:
            The number of finished epochs; 0 where there is no checkpoint.

        Raises:
            ValueError: a checkpoint does not fit. Nothing has been changed then.
        """
        names = self.get_model_names()
        file = checkpoints.file_to_resume([osp.join(directory, name) for name in names])
        if file is None:
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        found = self._read_checkpoints(directory, file)
        for name, (path, checkpoint, _) in found.items():
            if checkpoint.get("epoch") is None:
                raise UserError(f"{path} cannot be continued: it does not tell its epoch.")
            if checkpoint["epoch"] > getattr(self, "max_epoch", checkpoint["epoch"]):
                later = f"{path} is of epoch {checkpoint['epoch']}"
                raise UserError(f"OPTIM.MAX_EPOCH is {self.max_epoch}, but {later}. {WAY_OUT}")
            if self._optims[name] is not None and checkpoint.get("optimizer") is not None:
                check_optimizer(self._optims[name], checkpoint["optimizer"], name, path)
            if self._scheds[name] is not None and checkpoint.get("scheduler"):
                check_scheduler(self._scheds[name], checkpoint["scheduler"], name, path)
            check_random_states(checkpoint, path)
            if hasattr(self.scaler, "load_state_dict") and checkpoint.get("scaler"):
                check_scaler(self.scaler.state_dict(), checkpoint["scaler"], path)
            self.check_resumable(name, checkpoint, directory)

        for name, (path, checkpoint, state) in found.items():
            print(f'Loading checkpoint from "{path}"')
            self._unwrapped(name).load_state_dict(state, strict=False)
            self.restore_state(name, checkpoint)
        if hasattr(self.scaler, "load_state_dict") and checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        if checkpoint.get("best_result") is not None:
            self.best_result = float(checkpoint["best_result"])
        self._resumed_rng = self._random_state_of(checkpoint)
        if is_rank_zero() and directory == getattr(self, "output_dir", None):
            for path, _, _ in found.values():  # a run may have been killed between the two files
                point_to(*osp.split(path))
        print(f"Previous epoch: {checkpoint['epoch']}")
        return int(checkpoint["epoch"])

    def check_resumable(self, name: str, checkpoint: Mapping[str, Any], directory: str) -> None:
        """For a trainer to refuse a checkpoint that its run cannot continue, before anything is loaded."""

    @staticmethod
    def _random_state_of(checkpoint: Mapping[str, Any]) -> Any:
        """The random state of this process when the checkpoint was saved; None if there is none."""
        rank, world_size = get_rank(), get_world_size()
        if checkpoint.get("rng") is None:
            print(
                "It has no random state: the images will come in another order than without the interruption"
            )
            return None
        states = [checkpoint["rng"], *checkpoint.get("rng_of_others", ())]
        if len(states) != world_size:
            print(
                f"It is of a run on {len(states)} processes, here are {world_size}: the images will be "
                "augmented otherwise than without the interruption, and may come in another order"
            )
        return states[rank] if rank < len(states) else None

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Loads the weights of all models.

        Args:
            directory: holds a folder for each model. Nothing is loaded if it is empty or None.
            epoch: the one to load, counted from 1; by default the best, or else the newest.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: a checkpoint does not fit. Nothing has been changed then.
        """
        if not directory:
            print("load_model() is skipped, as no directory is given")
            return
        folders = [osp.join(directory, name) for name in self.get_model_names()]
        found = self._read_checkpoints(directory, checkpoints.file_to_load(folders, epoch))
        for name, (path, checkpoint, state) in found.items():
            result = checkpoint.get("val_result")
            shown = "" if result is None else f", val_result={float(result):.2f}"
            print(f"Load {path} to {name} (epoch={checkpoint.get('epoch')}{shown})")
            self._unwrapped(name).load_state_dict(state, strict=False)
        self.loaded_parts = tested_parts({name: each[1] for name, each in found.items()}, epoch)
        self.loaded_training = next(iter(found.values()))[1].get("identity") if found else None

    def _read_checkpoints(self, directory: str, file: str) -> dict[str, tuple[str, dict, Mapping[str, Any]]]:
        # (path, checkpoint, fitting state) of each model: all are read and checked before any is changed.
        found = {}
        for name in self.get_model_names():
            path = osp.join(directory, name, file)
            checkpoint = load_checkpoint(path)
            found[name] = (path, checkpoint, self.checked_state(name, checkpoint, path))
        epochs = {name: checkpoint.get("epoch") for name, (_, checkpoint, _) in found.items()}
        if len(set(epochs.values())) > 1:
            raise UserError(
                f"{file} in {directory} is not of one epoch for all models: {epochs}. Name an epoch."
            )
        return found

    def checked_state(self, name: str, checkpoint: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """`fitting_state` of a checkpoint whose parts have their form, and whose numbers are finite.

        Prefixes of wrappers are taken from the keys of its state dict; the checkpoint stays as it was saved.

        Raises:
            ValueError: it does not fit, or is none.
        """
        check_parts(checkpoint, path)
        wanted = self.model_state(name)
        if "state_dict" in checkpoint:
            checkpoint = {**checkpoint, "state_dict": strip_module(checkpoint["state_dict"], wanted)}
        state = self.fitting_state(name, checkpoint, path)
        check_numbers(state, dict(self._unwrapped(name).named_parameters()), path)
        return state

    # The run

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Trains from `start_epoch` (counted from 0) until `max_epoch` epochs are finished."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch

        self.before_train()
        self._restore_random_numbers()
        self._resumed_rng = None
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.check_losses()
            self.after_epoch()
        self.after_train()

    def _restore_random_numbers(self) -> None:
        if self._resumed_rng is not None:
            restore_rng_state(self._resumed_rng)

    def before_train(self) -> None:
        """Called once, before the first epoch."""

    def after_train(self) -> None:
        """Called once, after the last epoch."""

    def before_epoch(self) -> None:
        """Called before each epoch."""

    def after_epoch(self) -> None:
        """Called after each epoch."""

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self, split: str | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def parse_batch_train(self, *batches: Any) -> Any:
        raise NotImplementedError

    def parse_batch_test(self, batch: Any) -> Any:
        raise NotImplementedError

    def forward_backward(self, *batches: Any) -> dict[str, Any]:
        """One training step. Returns metrics to log: name → number."""
        raise NotImplementedError

    def model_inference(self, input: Any) -> Any:
        raise NotImplementedError

    # A step

    def model_zero_grad(self, names: Any = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Gradients of `loss`.

        Raises:
            FloatingPointError: it is not finite.
            ValueError: it depends on nothing that is learned.
        """
        self.detect_anomaly(loss)
        if not loss.requires_grad:
            raise UserError(
                "The loss depends on nothing that is learned: all it is computed from is frozen"
                " (requires_grad=False) or was computed under torch.no_grad()."
            )
        loss.backward()

    def model_update(self, names: Any = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        """Gradients of `loss`, and one step of the optimizers of `names` (default: all)."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def prograd_backward_and_update(
        self, loss_a: Tensor, loss_b: Tensor, lambda_: float = 1, names: Any = None
    ) -> None:
        """One step that lowers `loss_a` and does not raise `loss_b`: ProGrad, https://arxiv.org/abs/2205.14865.

        Where the two gradients of a parameter point against each other, the part of `loss_a`'s along that of
        `loss_b` is taken out, times `lambda_`.
        """
        names = self.get_model_names(names)
        learned = [p for name in names for p in self._models[name].parameters() if p.requires_grad]
        self.model_zero_grad(names)
        self.detect_anomaly(loss_b)
        loss_b.backward(retain_graph=True)
        grads_b = [None if p.grad is None else p.grad.clone() for p in learned]
        self.model_zero_grad(names)
        self.model_backward(loss_a)
        for p, grad_b in zip(learned, grads_b, strict=True):
            if p.grad is not None and grad_b is not None:
                direction = grad_b / grad_b.norm().clamp_min(torch.finfo(grad_b.dtype).tiny)
                against = (p.grad * direction).sum().clamp(max=0)
                p.grad = p.grad - lambda_ * against * direction
        self.model_update(names)

    def update_lr(self, names: Any = None) -> None:
        """One step of the schedulers. They count epochs, so trainers call it in the last batch of each."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raises a FloatingPointError where `loss` is not finite.

        There is no sync for a loss on a GPU: `check_losses` raises the error when the next line is printed,
        and before anything is saved.
        """
        self._deferred.add_loss(f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}", loss)

    def check_losses(self) -> None:
        """Raises a FloatingPointError that names the first batch since the last call with such a loss."""
        self._deferred.check_losses()

    # TensorBoard

    def init_writer(self, log_dir: str) -> None:
        """Opens TensorBoard's log; where that fails, curves are not logged."""
        if self._writer is not None or not is_rank_zero():
            return
        try:
            self._writer = SummaryWriter(log_dir=log_dir)
        except ImportError:
            print("TensorBoard is not installed: curves are not logged")
            return
        except Exception as error:  # a full disk, or versions that do not go together: training goes on
            self._drop_writer(error)
            return
        print(f"Initialize tensorboard (log_dir={log_dir})")

    def close_writer(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._drop_writer(error)
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None) -> None:
        """Logs a number to TensorBoard, if its log is open."""
        if self._writer is not None:
            try:
                self._writer.add_scalar(tag, scalar_value, global_step)
            except OSError as error:  # a full disk
                self._drop_writer(error)

    def _drop_writer(self, error: Exception) -> None:
        print(f"TensorBoard cannot be used: curves are not logged ({' '.join(str(error).split())})")
        self._writer = None
