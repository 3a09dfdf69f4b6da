"""Sweeps on a real Slurm of one node, without accounting. Skipped where there is none: docs/cluster.md."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from script_jobs import attempts_of, script_job
from slurm_node import slurm_node, why_not

from experiments.cluster import slurm
from experiments.cluster.cluster import Cluster, Unit
from experiments.cluster.options import ClusterOptions
from experiments.sweeps.queue import Status

pytest.importorskip("submitit")
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")

SLEEP = "time.sleep(300)"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Slurm of all these tests. Its jobs find script_jobs."""
    with pytest.MonkeyPatch.context() as patch, slurm_node(tmp_path_factory.mktemp("slurm")) as configuration:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        yield configuration


def cluster_for(output: Path, retries: int = 0, minutes: int = 5, *further: str) -> Cluster:
    cluster = Cluster(output, ClusterOptions("slurm", time=minutes, cpus_per_job=1, slurm=further), retries)
    cluster.seconds = 0.5
    cluster.unit_states.settle_seconds = 2.0
    return cluster


@pytest.fixture(scope="module")
def over_time(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A unit whose second job takes too long at first. Slurm looks at the time every half minute."""
    cluster = cluster_for(tmp_path_factory.mktemp("over_time"), 0, 1, "signal_delay_s=58")
    unit = (script_job("train"), script_job("test", f"if attempts == 1: {SLEEP}", needs="train"))
    cluster.submit([unit])
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


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "too slow"
        time.sleep(0.2)


def parent_of(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))


def watch(cluster: Cluster) -> dict[str, str]:
    """The units' last states."""
    *_, last = cluster.watch()
    return {name: state.state for name, state in last.units.items()}


@pytest.mark.usefixtures("over_time", "training")  # which take long, and wait for the last tests
def test_units_run_as_one_array(tmp_path: Path) -> None:
    cluster = cluster_for(tmp_path)
    units: list[Unit] = [
        (script_job("train"), script_job("test", needs="train")),
        (script_job("bad", "raise ValueError('no such shots')"),),
        (script_job("slow", "time.sleep(4)"),),
    ]
    assert cluster.submit(units) == ["train", "bad", "slow"]
    ids = {state.job.partition("_")[0] for state in cluster.states().values()}
    assert len(ids) == 1

    # The same command again, and another sweep on the same folder.
    assert cluster_for(tmp_path).submit(units) == []
    assert cluster_for(tmp_path).submit([units[2], (script_job("further"),)]) == ["further"]

    assert f"to stop them: scancel {ids.pop()}" in cluster.interrupted()
    assert watch(cluster) == {"train": "done", "bad": "failed", "slow": "done"}
    bad = cluster.states()["bad"]
    assert bad.detail == "ValueError: no such shots"
    assert bad.log is not None
    assert "no such shots" in bad.log.read_text()
    assert cluster.interrupted() == "no job is left in Slurm; the same command goes on from here."
    assert [attempts_of(tmp_path, name) for name in ("train", "test", "bad", "slow")] == [1, 1, 1, 1]


def test_a_cancelled_unit_is_submitted_by_a_second_call(node: Path, tmp_path: Path) -> None:
    units: list[Unit] = [(script_job("a", f"if attempts == 1: {SLEEP}"),), (script_job("b"),)]
    cluster = cluster_for(tmp_path, retries=2)
    cluster.submit(units)
    wait_for(lambda: attempts_of(tmp_path, "a") == 1)
    subprocess.run(["scancel", cluster.states()["a"].job], check=True)
    assert watch(cluster) == {"a": "failed", "b": "done"}
    cancelled = cluster.states()["a"]
    assert cancelled.detail.startswith("CANCELLED: ")
    assert "CANCELLED AT" in cancelled.detail

    second = cluster_for(tmp_path)
    assert second.submit(units) == ["a"]
    assert watch(second) == {"a": "done", "b": "done"}
    assert attempts_of(tmp_path, "a") == 2


def test_a_killed_unit_is_submitted_again_as_retries_say(node: Path, tmp_path: Path) -> None:
    cluster = cluster_for(tmp_path, retries=1)
    script = f"(folder / 'pid').write_text(str(__import__('os').getpid())); {SLEEP}"
    cluster.submit([(script_job("a", f"if attempts == 1: {script}"),)])
    pid = tmp_path / "a" / "pid"
    wait_for(lambda: pid.is_file() and pid.read_text() != "")
    first = cluster.states()["a"].job
    # Where memory runs out, the system kills one of these: the run, its queue, or submitit's process.
    os.kill(parent_of(parent_of(int(pid.read_text()))), signal.SIGKILL)
    assert watch(cluster) == {"a": "done"}
    assert cluster.states()["a"].job != first
    assert attempts_of(tmp_path, "a") == 2


def test_cancel_ends_what_waits_and_what_runs(node: Path, tmp_path: Path) -> None:
    running, waiting = (script_job("a", SLEEP),), (script_job("b", SLEEP),)
    cluster_for(tmp_path).submit([running])
    cluster = cluster_for(tmp_path, 0, 5, "begin=now+1hour")
    assert cluster.submit([running, waiting]) == ["b"]
    wait_for(lambda: attempts_of(tmp_path, "a") == 1)
    assert cluster.states()["b"].state == "pending"
    assert sorted(cluster.cancel()) == ["a", "b"]
    assert cluster.states()["b"].detail == "CANCELLED"
    job = cluster.states()["a"].job
    assert slurm.queued([job])[job].state in ("COMPLETING", "CANCELLED")


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

    with pytest.raises(KeyboardInterrupt, match=r"the jobs go on in Slurm.*to stop them: scancel \d+$"):
        cluster.run(units, changed)
    assert events[1] in ("waiting  a: PartitionTimeLimit", "waiting  a: PartitionConfig")
    assert sorted(cluster.cancel()) == ["a", "b"]


def test_a_unit_that_is_over_its_time_is_requeued_and_finishes(over_time: Cluster) -> None:
    first = over_time.states()["train"].job
    assert watch(over_time) == {"train": "done"}
    assert over_time.states()["train"].job == first
    output = over_time.output
    assert [attempts_of(output, name) for name in ("train", "test")] == [1, 2]


def test_a_training_and_its_test_run_by_one_command(training: tuple[subprocess.Popen, Path]) -> None:
    process, output = training
    code = process.wait(200)  # half a minute, where the cores have nothing else to do
    printed = (output / "printed").read_text()
    assert code == 0, printed
    assert "submitted 1 of 1 units, as jobs " in printed
    assert f"2 of 2 runs have a result in {output}." in printed
    for part in ("train_base", "test_new"):
        (result,) = (output / "base2new" / part).rglob("result.json")
        assert json.loads(result.read_text())["results"]["accuracy"] > 20  # by chance: 1 of 24 classes
