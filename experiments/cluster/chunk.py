"""One Slurm job of a sweep: a chunk of its runs, which the ordinary queue runs over the node's GPUs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cluster.options import ClusterOptions
from experiments.run_folder import ROOT

if TYPE_CHECKING:
    from experiments.sweeps.job import Job
    from experiments.sweeps.queue import Status

# After SIGTERM, a job that leaves by itself is not requeued: it waits to be killed.
LONGEST_GRACE = 3600.0  # seconds


@dataclass
class Chunk:
    """Runs jobs; submitit calls it on the node.

    Slurm sends SIGUSR2 to all processes of a job before the time limit: the runs end, and submitit requeues
    the job. At a preemption or `scancel` it sends SIGTERM.
    """

    jobs: tuple[Job, ...]
    output: Path
    options: ClusterOptions
    retries: int = 0

    def __call__(self) -> None:
        """Runs what has no result yet.

        Raises:
            RuntimeError: a run failed; names the first one and why.
        """
        from experiments.sweeps.devices import Devices, cores, devices
        from experiments.sweeps.queue import Queue

        os.chdir(ROOT)
        options = self.options
        if options.gpus:
            places = devices(options.jobs_per_gpu, options.gpus_per_job)
        else:
            places = Devices(workers=options.at_once)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // places.most)))
        try:
            status = Queue(self.jobs, self.output, places, self.retries).run(_print)
        except KeyboardInterrupt:
            time.sleep(LONGEST_GRACE)
            raise RuntimeError("The runs were stopped by SIGTERM.") from None
        if status.failed:
            folder, reason = next(iter(status.failed.items()))
            raise RuntimeError(f"{len(status.failed)} of {len(self.jobs)} runs failed; {folder}: {reason}")

    def checkpoint(self) -> Any:
        """What the requeued job runs: the same. Results and the last saved epoch are on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _print(status: Status, event: str) -> None:
    if event:
        print(event, flush=True)
