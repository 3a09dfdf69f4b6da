"""What a sweep asks of a cluster: flags of the command line, and their words in submitit."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import shlex
import shutil
from typing import Any

from experiments.run_folder import ROOT
from prompted_clip.errors import UserError

CLUSTERS = ("slurm",)
# What has a flag of its own is not for --slurm KEY=VALUE.
HAVE_FLAGS = {
    "account": "--account",
    "array_parallelism": "--array-parallelism",
    "cpus_per_task": "--cpus-per-job",
    "gpus_per_node": "--gpus-per-node",
    "mem": "--mem-gb",
    "partition": "--partition",
    "qos": "--qos",
    "setup": "--setup",
    "time": "--time",
}
OF_ANY_SWEEP = ("cluster", "gpus_per_job", "jobs_per_gpu", "workers")


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """What to ask of a cluster: the flags of `add_arguments`, and those of a sweep on one machine.

    0, "" and () stand for the cluster's own default.

    Attributes:
        gpus_per_job: GPUs that share a run (torchrun); 0 where there are none.
        gpus_per_node: GPUs of a Slurm job; 0: as many as a run takes.
        jobs_per_gpu: runs that share a GPU; 0: as many as fit, as measured.
        workers: runs at once in a Slurm job without GPUs.
        chunk: trainings, each with its tests, in one Slurm job; 0: as many as run at once.

    Raises:
        ValueError: a value does not fit, or submitit or Slurm is not installed.
    """

    cluster: str
    partition: str = ""
    account: str = ""
    qos: str = ""
    time: int = 240
    gpus_per_job: int = 0
    gpus_per_node: int = 0
    jobs_per_gpu: int = 1
    workers: int = 0
    chunk: int = 0
    cpus_per_job: int = 0
    mem_gb: float = 0.0
    array_parallelism: int = 0
    slurm: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> ClusterOptions | None:
        """The options of a command line that `add_arguments` has extended; None without `--cluster`.

        Raises:
            ValueError: as the class; or a flag is for a cluster, and none is named.
        """
        given: dict[str, Any] = {field.name: getattr(args, field.name) for field in dataclasses.fields(cls)}
        given |= {name: tuple(given[name]) for name in ("slurm", "setup")}
        given["jobs_per_gpu"] = 0 if args.jobs_per_gpu == "auto" else int(args.jobs_per_gpu)
        if args.cluster:
            return cls(**given)
        for field in dataclasses.fields(cls):
            if field.name not in OF_ANY_SWEEP and given[field.name] != field.default:
                raise UserError(f"{_flag(field.name)} is for a cluster: give --cluster, too.")
        return None

    def __post_init__(self) -> None:
        numbers = ("gpus_per_job", "gpus_per_node", "jobs_per_gpu", "workers", "chunk", "cpus_per_job")
        for name in (*numbers, "mem_gb", "array_parallelism"):
            if getattr(self, name) < 0:
                raise UserError(f"{_flag(name)} is {getattr(self, name)}; allowed is 0 or more.")
        if self.time < 1:
            raise UserError(f"--time is {self.time}; allowed are 1 or more minutes.")
        if importlib.util.find_spec("submitit") is None:
            raise UserError(f'--cluster {self.cluster} needs submitit: pip install -e ".[cluster]".')
        if self.gpus and self.gpus < self.gpus_per_job:
            raise UserError(
                f"--gpus-per-node is {self.gpus_per_node}, and --gpus-per-job {self.gpus_per_job}; a run "
                "takes its GPUs from one node."
            )
        self._further()
        missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
        if missing:
            raise UserError(
                f"--cluster slurm: there is no {missing[0]} on this machine. Give the command where jobs are "
                "submitted."
            )

    @property
    def gpus(self) -> int:
        """GPUs of a Slurm job."""
        return self.gpus_per_node if self.gpus_per_node and self.gpus_per_job else self.gpus_per_job

    @property
    def at_once(self) -> int:
        """Runs at once in a Slurm job, as far as that is known before."""
        if not self.gpus:
            return max(1, self.workers)
        return self.gpus // self.gpus_per_job * max(1, self.jobs_per_gpu)

    def parameters(self) -> dict[str, Any]:
        """What `submitit.AutoExecutor.update_parameters` takes."""
        parameters: dict[str, Any] = {"timeout_min": self.time, "name": "sweep"}
        if self.gpus:
            parameters["gpus_per_node"] = self.gpus
        for name, value in (("cpus_per_task", self.cpus_per_job), ("mem_gb", self.mem_gb)):
            if value:
                parameters[name] = value
        for name in ("partition", "account", "qos", "array_parallelism"):
            if getattr(self, name):
                parameters[f"slurm_{name}"] = getattr(self, name)
        # Jobs import this project from its folder. Since Slurm 22.05 a step has not its job's CPUs by itself.
        exports = [f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"]
        if self.cpus_per_job:
            exports.append(f"export SRUN_CPUS_PER_TASK={self.cpus_per_job}")
        return parameters | self._further() | {"slurm_setup": [*self.setup, *exports]}

    def _further(self) -> dict[str, Any]:
        """`--slurm KEY=VALUE`: submitit's where it knows KEY, otherwise an option of sbatch."""
        from submitit import SlurmExecutor

        known: dict[str, Any] = {}
        further: dict[str, Any] = {"chdir": str(ROOT)}  # a --setup line may say .venv/bin/activate
        for pair in self.slurm:
            key, equals, value = pair.partition("=")
            name = key.removeprefix("--").replace("-", "_")
            if not name.isidentifier():
                raise UserError(f"--slurm {pair}: give an option of sbatch as KEY=VALUE, or KEY alone.")
            if name in HAVE_FLAGS:
                raise UserError(f"--slurm {pair}: give {HAVE_FLAGS[name]} instead.")
            typed = int(value) if value.isdigit() else value if equals else True
            if name in SlurmExecutor._valid_parameters():
                known[f"slurm_{name}"] = typed
            else:
                further[name.replace("_", "-")] = typed
        return {**known, "slurm_additional_parameters": further}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a cluster, beside `--gpus-per-job`, `--jobs-per-gpu` and `--workers`."""
    add = parser.add_argument_group("on a cluster", "needs submitit; docs/cluster.md tells more").add_argument
    add("--cluster", choices=CLUSTERS, default="", help="hand the runs to Slurm")
    add("--partition", default="", help="Slurm's partition")
    add("--account", default="", help="Slurm's account")
    add("--qos", default="", help="Slurm's quality of service")
    add("--time", type=int, default=240, metavar="MINUTES", help="limit of a job; it goes on in another one")
    add("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of each job; 0: as --gpus-per-job")
    add("--chunk", type=int, default=0, metavar="N", help="trainings of each job; 0: as many as run at once")
    add("--cpus-per-job", type=int, default=0, metavar="N", help="CPUs of each job; 0: the cluster's default")
    add(
        "--mem-gb", type=float, default=0.0, metavar="GB", help="memory of each job; 0: the cluster's default"
    )
    add("--array-parallelism", type=int, default=0, metavar="N", help="jobs at once; 0: 256")
    add(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another option of sbatch; repeatable",
    )
    add("--setup", action="append", default=[], metavar="LINE", help="shell line before a job; repeatable")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
