"""What runs on a node of a cluster: one unit, in a process that the cluster's warnings do not kill."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cluster.processes import kill_with_children
from experiments.jobs import ROOT

if TYPE_CHECKING:
    from experiments.jobs import Job
    from experiments.sweeps.queue import Status

# After SIGTERM, a node is taken away: at a preemption, when the cluster's grace is over.
LONGEST_GRACE = 3600.0  # seconds


class UnitOnNode:
    """Runs the jobs of a unit one after the other; submitit calls it on the node.

    Slurm sends its warnings to all processes of a job: SIGUSR2 before the time limit, which submitit answers
    by asking for the `checkpoint` and requeueing the job, and SIGTERM at a preemption or `scancel`. The runs
    ignore SIGUSR2, which would kill them and look like a failure. At SIGTERM they end.

    Args:
        output: the folder of all results.
        retries: further attempts for a run that fails.
    """

    def __init__(self, jobs: tuple[Job, ...], output: Path, retries: int = 0) -> None:
        self.jobs = jobs
        self.output = output
        self.retries = retries

    def __call__(self) -> None:
        """Runs what has no result yet.

        Raises:
            RuntimeError: a run failed, with the last line of its error; or the runs' process was killed.
        """
        os.chdir(ROOT)
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(self, sender))
        process.start()
        sender.close()
        try:
            error = receiver.recv()
            if error is None:
                time.sleep(LONGEST_GRACE)  # ends by a signal; one that left is not requeued
                error = "The runs were stopped by SIGTERM."
        except EOFError:
            process.join()
            raise RuntimeError(f"The process of the runs ended with exit code {process.exitcode}.") from None
        except BaseException:  # submitit's answer to SIGUSR2: the job is requeued, and this process ends
            if process.pid is not None:
                with contextlib.suppress(OSError):  # Slurm is killing all of the job, ps too
                    kill_with_children(process.pid)
            raise
        process.join()
        if error:
            raise RuntimeError(error)

    def checkpoint(self) -> Any:
        """What the requeued job runs: the same. Results and the last saved epoch are on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _run(unit: UnitOnNode, sender: Connection) -> None:
    """Runs a unit and sends the last line of its error: "" without one, None if it was stopped."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the runs inherit it
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # from the start, as the queue has it later
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores()))
    try:
        from experiments.sweeps.devices import Devices
        from experiments.sweeps.queue import Queue

        status = Queue(unit.jobs, unit.output, Devices(), unit.retries).run(_tell)
        sender.send(next(iter(status.failed.values()), ""))
    except KeyboardInterrupt:
        sender.send(None)
    except Exception as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}")


def _tell(status: Status, event: str) -> None:
    if event:
        print(event, flush=True)


def _cores() -> int:
    """The cores that this process may use; a node's other cores are other jobs'."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", cores)))
