"""Runs a protocol of the field: all methods, datasets and seeds, by one command.

    python -m scripts.sweep base2new --trainers MaPLe CoOp --seeds 1 2 3 --root /path/to/datasets
    python -m scripts.sweep base2new --datasets shapes     # nothing to download: the embedded dataset
    python -m scripts.sweep cross_dataset --trainers MaPLe --dry-run

It can be stopped at any time; the same command goes on, and what has a result is not run again. It ends with
the report on all that is in the folder of results, as text here and as files there. docs/sweeps.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cluster.options import ClusterOptions, add_arguments
from experiments.plans import save_plan
from experiments.protocols import Protocol, protocol_names, read_protocol
from experiments.run_folder import read_result
from experiments.sweeps.job import Job
from experiments.sweeps.units import STAGES, Selection, units
from prompted_clip.console import run_command
from prompted_clip.errors import UserError
from scripts import report

if TYPE_CHECKING:
    from experiments.sweeps.queue import Status


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Runs a protocol: trains and tests all methods, datasets and seeds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("protocol", help=f"{', '.join(protocol_names())}, or the path of a yaml file like those")
    add("--trainers", nargs="+", default=["all"], help="of configs/protocols/methods.yaml, or TRAINER:CONFIG")
    add("--datasets", nargs="+", default=["all"], help="of configs/datasets; all: those of the protocol")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of the few-shot samples and the training")
    add(
        "--ten-seeds",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="datasets with the seeds 1 to 10 instead",
    )
    add("--shots", nargs="+", type=int, default=[], help="images per class; by default the protocol's")
    add("--source", default="", help="the dataset that is trained on, in protocols with one")
    add("--values", nargs="+", type=int, default=[], help="of an ablation, such as prompt depths")
    add("--root", default=os.environ.get("DATA", "data"), help="folder of the datasets (DATA)")
    add("--output", default=os.environ.get("OUTPUT", "output"), help="folder of all results (OUTPUT)")
    add("--backbone", default="", help="name of the CLIP model, if not that of the configuration")
    add("--plugin", action="append", default=[], help="module or file that registers more; may be repeated")
    add("--dry-run", action="store_true", help="print the commands, and run nothing")
    part = parser.add_argument_group("parts of a protocol")
    part.add_argument("--stage", choices=STAGES, default="all", help="only the trainings, or only the tests")
    part.add_argument("--classes", nargs="+", default=[], help="test these classes instead: base, new, all")
    part.add_argument("--weights", default="", help="test these: a folder, with {seed} and {dataset} in it")
    part.add_argument("--load-epoch", type=int, help="epoch that is tested; by default the best or the last")
    run = parser.add_argument_group("running")
    run.add_argument("--workers", type=int, default=0, help="runs at once on the CPU; 0: one a core, up to 8")
    run.add_argument(
        "--jobs-per-gpu", default="1", help="runs that share a GPU: a number, or auto (measured)"
    )
    run.add_argument("--gpus-per-job", type=int, default=1, help="GPUs that share a run (torchrun)")
    run.add_argument("--retries", type=int, default=0, help="further attempts for a run that fails")
    run.add_argument("--show", action="store_true", help="one run after the other, printing here")
    add_arguments(parser)
    add(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE pairs for every run's configuration; the last flag, since it takes all that follows",
    )
    return parser


def selection_of(args: argparse.Namespace, protocol: Protocol) -> Selection:
    """What the flags ask for.

    Raises:
        ValueError: a number that cannot be.
    """
    for flag, values, least in (
        ("--seeds", args.seeds, 0),
        ("--shots", args.shots, 1),
        ("--values", args.values, 0),
        ("--workers", [args.workers], 0),
        ("--gpus-per-job", [args.gpus_per_job], 0 if args.cluster else 1),
        ("--retries", [args.retries], 0),
    ):
        wrong = next((value for value in values if value < least), None)
        if wrong is not None:
            raise UserError(f"{flag} is {wrong}; allowed is {least} or more.")
    if args.jobs_per_gpu != "auto" and not (args.jobs_per_gpu.isdigit() and int(args.jobs_per_gpu)):
        raise UserError(f"--jobs-per-gpu is {args.jobs_per_gpu}; allowed are auto, and 1 or more.")
    if args.cluster and args.show:
        raise UserError(
            "--show prints runs of this machine; with --cluster, their logs are in their folders."
        )
    if args.values and not protocol.curves:
        raise UserError(f"--values is for ablations; {protocol.name} has no curve.")
    if args.source and not protocol.source:
        raise UserError(f"--source is {args.source}; {protocol.name} trains on the dataset that it tests.")
    trained = protocol.datasets if args.datasets == ["all"] else args.datasets
    if protocol.source:
        trained = [args.source or protocol.source]
    if wrong := [each for each in args.ten_seeds if each not in trained]:
        raise UserError(
            f"--ten-seeds {wrong[0]}: nothing is trained on it; allowed are {', '.join(trained)}."
        )
    known = {step.classes for step in (*protocol.untrained, *protocol.tests)}
    wrong_classes = [each for each in args.classes if each not in known]
    if wrong_classes:
        raise UserError(f"--classes {wrong_classes[0]}: {protocol.name} has {', '.join(sorted(known))}.")
    return Selection(
        methods=args.trainers,
        datasets=[] if args.datasets == ["all"] else args.datasets,
        seeds=args.seeds,
        ten_seeds=args.ten_seeds,
        shots=args.shots,
        source=args.source,
        values=args.values,
        stage=args.stage,
        classes=args.classes,
        weights=args.weights and str(Path(args.weights).absolute()),
        load_epoch=args.load_epoch,
        root=str(Path(args.root).expanduser().absolute()),
        options=args.options,
        plugins=[str(Path(each).absolute()) if each.endswith(".py") else each for each in args.plugin],
        backbone=args.backbone,
    )


def dry_run(jobs: Sequence[Job], output: Path) -> None:
    """Prints the commands, to be run in the project's folder; those that have a result behind a #."""
    for job in jobs:
        done = "# has a result: " if read_result(output / job.folder) else ""
        print(done + shlex.join(job.command("python", output)))


def with_launcher(job: Job, processes: int) -> Job:
    """The same run on several GPUs, a process each."""
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return replace(job, launcher=words) if processes > 1 else job


def run(args: argparse.Namespace) -> int:
    """Runs the sweep that the flags ask for; returns the exit code: 1 if a run failed.

    Raises:
        ValueError, FileNotFoundError: something is wrong with what was asked; nothing was run.
        KeyboardInterrupt: Ctrl-C.
    """
    protocol = read_protocol(args.protocol)
    selection = selection_of(args, protocol)
    output = Path(args.output).expanduser().absolute()
    options = ClusterOptions.from_arguments(args)
    wanted = [
        tuple(with_launcher(job, args.gpus_per_job) for job in unit) for unit in units(protocol, selection)
    ]
    jobs = list(dict.fromkeys(job for unit in wanted for job in unit))
    if not jobs:
        raise UserError(f"{protocol.name} has nothing to do for these flags.")

    if not args.dry_run:
        print(
            f"{protocol.name}: {len(jobs)} runs. Reading their configurations, looking for data ...",
            flush=True,
        )
    from experiments.sweeps.preflight import check  # imports torch, which takes seconds

    check(jobs, output, on_disk=not args.dry_run)
    if args.dry_run:
        dry_run(jobs, output)
        return 0
    save_plan(protocol.name, [job.planned for job in jobs], output)
    status = run_on_cluster(args, options, wanted, output) if options else run_here(args, jobs, output)
    for folder, reason in status.failed.items():
        print(f"failed: {output / folder}: {reason}", file=sys.stderr)
    print(f"{len(status.finished)} of {len(jobs)} runs have a result in {output}.\n")
    reported = 0
    if not args.show:
        reported = report.main([str(output), "--protocol", protocol.name], args.command)
        print()
        reported = report.main([str(output), "--format", "all"], args.command) or reported
        print(f"\nTo see it in a browser: {(output / 'report' / 'report.html').as_uri()}")
    return 1 if status.failed else reported


def run_on_cluster(
    args: argparse.Namespace, options: ClusterOptions, wanted: Sequence[tuple[Job, ...]], output: Path
) -> Status:
    """Runs the jobs on a cluster: each unit as a job of its own there."""
    from experiments.cluster.cluster import Cluster
    from experiments.sweeps.view import View

    with View(output).shown() as view:
        return Cluster(output, options, args.retries).run(wanted, view)


def run_here(args: argparse.Namespace, jobs: Sequence[Job], output: Path) -> Status:
    """Runs the jobs on this machine."""
    from experiments.sweeps.devices import devices
    from experiments.sweeps.queue import Queue
    from experiments.sweeps.view import View

    per_gpu = 0 if args.jobs_per_gpu == "auto" else int(args.jobs_per_gpu)
    places = devices(per_gpu, args.gpus_per_job, 1 if args.show else args.workers)
    queue = Queue(jobs, output, places, args.retries, shown=args.show)
    with View(output).shown() as view:
        return queue.run(view)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 if a run failed, that of the report, 2 for bad input."""
    args = build_parser().parse_args(argv)
    args.command = f"python -m scripts.sweep {shlex.join(sys.argv[1:] if argv is None else argv)}"
    return run_command("sweep", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
