"""Sweeps on a real Slurm of one node, without accounting. Skipped where there is none: docs/cluster.md."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT
from script_jobs import attempts_of, script_job
from slurm_node import slurm_node, why_not

from experiments.cluster.cluster import Cluster, Unit
from experiments.cluster.options import ClusterOptions
from experiments.sweeps.queue import Status

pytest.importorskip("submitit")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")

SLEEP = "time.sleep(600)"
OVER_TIME: Unit = (script_job("train"), script_job("test", f"if attempts == 1: {SLEEP}", needs="train"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Slurm of all these tests. Its jobs find script_jobs."""
    with pytest.MonkeyPatch.context() as patch, slurm_node(tmp_path_factory.mktemp("slurm")) as configuration:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        yield configuration


def cluster_for(output: Path, retries: int = 0, minutes: int = 5, *further: str) -> Cluster:
    cluster = Cluster(output, ClusterOptions("slurm", time=minutes, cpus_per_job=1, slurm=further), retries)
    cluster.look_seconds = 0.5
    cluster.settle_seconds = 2.0
    return cluster


@pytest.fixture(scope="module")
def over_time(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A unit whose second job takes too long at first. Slurm looks at the time every half minute."""
    cluster = cluster_for(tmp_path_factory.mktemp("over_time"), 0, 1, "signal_delay_s=58")
    cluster.submit([OVER_TIME])
    return cluster


@pytest.fixture(scope="module")
def training(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A sweep with one real training, by the command line."""
    output = tmp_path_factory.mktemp("training")
    words = "base2new --trainers MaPLe --datasets shapes --seeds 1 --shots 1 --cluster slurm --gpus-per-job 0"
    command = [sys.executable, "-m", "scripts.sweep", *words.split(), "--output", str(output)]
    options = ["--options", "OPTIM.MAX_EPOCH", "1"]
    with (output / "printed").open("w") as printed:
        process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=printed, stderr=printed)
        yield process, output
        process.terminate()
        process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "too slow"
        time.sleep(0.2)


def parent_of(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))


def run(cluster: Cluster, units: list[Unit]) -> tuple[Status, list[str]]:
    events: list[str] = []
    status = cluster.run(units, lambda status, event: events.append(event) if event else None)
    return status, events


@pytest.mark.usefixtures("over_time", "training")  # which take long, and wait for the last tests
def test_units_run_as_one_array(tmp_path: Path) -> None:
    units: list[Unit] = [
        (script_job("train"), script_job("test", needs="train")),
        (script_job("bad", "raise ValueError('no such shots')"),),
        (script_job("slow", "time.sleep(4)"),),
    ]
    cluster = cluster_for(tmp_path)
    jobs = cluster.submit(units)
    assert [job.id.partition("_")[2] for job in jobs] == ["0", "1", "2"]

    # The same command again, and another sweep on the same folder.
    assert cluster_for(tmp_path).submit(units) == []
    assert len(cluster_for(tmp_path).submit([units[2], (script_job("further"),)])) == 1

    status, _ = run(cluster, units)
    assert status.finished == {"train", "test", "slow"}
    assert status.failed == {"bad": "ValueError: no such shots"}
    assert cluster.interrupted(status) == "no job is left in Slurm; the same command goes on from here."
    assert [attempts_of(tmp_path, name) for name in ("train", "test", "bad", "slow")] == [1, 1, 1, 1]


def test_two_jobs_share_the_node_and_two_runs_each_job(node: Path, tmp_path: Path) -> None:
    """Each run ends when four have begun."""
    all_at_once = """
end = time.monotonic() + 120
while len(list(folder.parent.glob("run*/pid"))) < 4:
    assert time.monotonic() < end, "alone"
    time.sleep(0.1)
"""
    units: list[Unit] = [(script_job(f"run{number}", all_at_once),) for number in range(4)]
    cluster = cluster_for(tmp_path)
    cluster.options = replace(cluster.options, cpus_per_job=1, chunk=2, workers=2)
    status, events = run(cluster, units)
    assert events[0].startswith("submitted 2 Slurm jobs: ")
    assert (status.finished, status.failed) == ({"run0", "run1", "run2", "run3"}, {})


def test_a_cancelled_unit_is_submitted_by_a_second_call(node: Path, tmp_path: Path) -> None:
    units: list[Unit] = [(script_job("a", f"if attempts == 1: {SLEEP}"),), (script_job("b"),)]
    cluster = cluster_for(tmp_path, retries=2)
    first, _ = cluster.submit(units)
    wait_for(lambda: attempts_of(tmp_path, "a") == 1)
    subprocess.run(["scancel", first.id], check=True)
    status, _ = run(cluster, units)
    assert status.finished == {"b"}
    assert "CANCELLED AT" in status.failed["a"]

    status, events = run(cluster_for(tmp_path), units)
    assert events[0].startswith("submitted 1 Slurm jobs: ")
    assert status.finished == {"a", "b"}
    assert attempts_of(tmp_path, "a") == 2


def test_a_killed_job_is_submitted_again_as_retries_say(node: Path, tmp_path: Path) -> None:
    units: list[Unit] = [(script_job("a", f"if attempts == 1: {SLEEP}"),)]
    cluster = cluster_for(tmp_path, retries=1)
    cluster.submit(units)
    wait_for(lambda: attempts_of(tmp_path, "a") == 1)
    # Where memory runs out, the system kills one of these: the run, or the process of its queue.
    os.kill(parent_of(int((tmp_path / "a" / "pid").read_text())), signal.SIGKILL)
    status, _ = run(cluster, units)
    assert status.finished == {"a"}
    assert attempts_of(tmp_path, "a") == 2


def test_a_partition_that_is_not_there_is_said_in_one_line(node: Path, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ClusterOptions("slurm", partition="gpus"))
    with pytest.raises(ValueError, match=r"^Slurm refused the jobs: .*[Ii]nvalid partition.*$"):
        cluster.submit([(script_job("a"),)])


def test_it_is_told_once_why_jobs_wait_for_ever(node: Path, tmp_path: Path) -> None:
    cluster = cluster_for(tmp_path, 0, 100_000)
    units: list[Unit] = [(script_job("a"),), (script_job("b"),)]
    events: list[str] = []

    def changed(status: Status, event: str) -> None:
        events.extend([event] if event else [])
        if len(events) > 1:
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match=r"the jobs go on in Slurm.*to stop them: scancel (\d+)$"
    ) as stop:
        cluster.run(units, changed)
    assert events[1] in ("waiting  PartitionTimeLimit", "waiting  PartitionConfig")
    subprocess.run(["scancel", str(stop.value).rpartition(" ")[2]], check=True)


def test_a_unit_that_is_over_its_time_is_requeued_and_finishes(over_time: Cluster) -> None:
    status, events = run(over_time, [OVER_TIME])
    assert status.finished == {"train", "test"}
    assert events[0] == "submitted 0 Slurm jobs"
    assert [attempts_of(over_time.output, name) for name in ("train", "test")] == [1, 2]


def test_a_training_and_its_test_run_by_one_command(training: tuple[subprocess.Popen, Path]) -> None:
    process, output = training
    code = process.wait(600)  # half a minute, where the cores have nothing else to do
    printed = (output / "printed").read_text()
    assert code == 0, printed
    assert "submitted 1 Slurm jobs: " in printed
    assert f"3 of 3 runs have a result in {output}." in printed
    for part in ("train_base", "test_new"):
        (result,) = (output / "base2new" / part).rglob("result.json")
        assert json.loads(result.read_text())["results"]["accuracy"] > 20  # by chance: 1 of 24 classes
