"""Sweeps on Slurm: with programs in its place that start processes, or say what they are told to."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_slurm
import pytest
import torch
from helpers import ROOT
from script_jobs import attempts_of, script_job

from experiments.cluster import slurm
from experiments.cluster.cluster import Cluster
from experiments.cluster.options import ClusterOptions, add_arguments
from experiments.sweeps.queue import Status

submitit = pytest.importorskip("submitit")

SLEEP = "time.sleep(600)"


@pytest.fixture
def cluster_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters of one output folder, whose jobs are processes; all are killed in the end."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "slurm").mkdir()
    fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "slurm"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))  # where the processes find script_jobs

    def make(retries: int = 0, **options: int) -> Cluster:
        cluster = Cluster(tmp_path / "output", ClusterOptions("slurm", **options), retries)
        cluster.look_seconds = cluster.settle_seconds = 0.1
        return cluster

    yield make
    fake_slurm.scancel(*(path.stem for path in (tmp_path / "slurm").glob("*.json")))


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "too slow"
        time.sleep(0.1)


def run(cluster: Cluster, *units) -> tuple[Status, list[str]]:
    events: list[str] = []
    status = cluster.run(units, lambda status, event: events.append(event) if event else None)
    return status, events


def test_runs_of_a_chunk_share_a_node_and_a_failure_stops_no_other(cluster_of, tmp_path: Path) -> None:
    units = [
        (script_job("train"), script_job("test", needs="train")),
        (script_job("bad", "raise ValueError('no such shots')"), script_job("bad test", needs="bad")),
        (script_job("other"),),
    ]
    status, events = run(cluster_of(chunk=2, workers=2), *units)
    assert status.finished == {"train", "test", "other"}
    assert status.failed == {
        "bad": "ValueError: no such shots",
        "bad test": "its training failed: bad",
    }
    assert events[0] == "submitted 2 Slurm jobs: 1"
    assert "finished train in 1 s: accuracy 50.00 %" in events
    assert sorted(path.name for path in (tmp_path / "slurm").glob("*.json")) == ["1_0.json", "1_1.json"]
    assert "no such shots" in (tmp_path / "output" / "bad" / "error.txt").read_text()


def test_runs_of_a_node_share_its_gpus(cluster_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two on each: each run ends when four have begun."""
    (tmp_path / "slurm" / "hold").touch()
    all_at_once = """
(folder / "gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
while len(list(folder.parent.glob("*/gpu"))) < 4: time.sleep(0.01)
"""
    cluster = cluster_of(gpus_per_job=1, gpus_per_node=2, jobs_per_gpu=2)
    assert len(cluster.submit([(script_job(f"run{number}", all_at_once),) for number in range(5)])) == 2
    (pickled,) = tmp_path.glob("output/cluster/*/1_0_submitted.pkl")
    assert "--gpus-per-node=2" in pickled.with_name("1_submission.sh").read_text()

    monkeypatch.chdir(tmp_path)  # which a node's process changes
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = argparse.Namespace(total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    submitit.core.utils.DelayedSubmission.load(pickled).function()
    assert sorted(path.read_text() for path in tmp_path.glob("output/*/gpu")) == ["0", "0", "1", "1"]
    assert len(list(tmp_path.glob("output/*/result.json"))) == 4


def test_what_waits_or_runs_is_not_submitted_twice(cluster_of, tmp_path: Path) -> None:
    go = f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.1)"
    slow, bad = (script_job("slow", go),), (script_job("bad", "sys.exit('no')"),)
    cluster_of().submit([slow])
    second = cluster_of()
    assert [job.id for job in second.submit([slow, bad])] == ["2"]
    (tmp_path / "go").touch()
    status, _ = run(second, slow, bad)
    assert (status.finished, status.failed) == ({"slow"}, {"bad": "no"})
    assert attempts_of(tmp_path / "output", "slow") == 1
    # What failed is tried again by a new call; what is done is not.
    assert [job.id for job in cluster_of().submit([slow, bad])] == ["3"]


def test_a_sweep_that_wants_more_of_a_unit_gets_it(cluster_of, tmp_path: Path) -> None:
    train, test = script_job("train"), script_job("test", needs="train")
    (tmp_path / "slurm" / "hold").touch()
    cluster_of().submit([(train,)])
    longer = cluster_of()
    assert longer.submit([(train, test)]) == [], "its training waits in Slurm already"
    (tmp_path / "slurm" / "hold").unlink()
    subprocess.run(["scontrol", "release", "1"], check=True)
    status, _ = run(longer, (train, test))
    assert status.finished == {"train", "test"}
    assert attempts_of(tmp_path / "output", "train") == 1


def test_another_ones_files_run_no_code(cluster_of, tmp_path: Path) -> None:
    """A results folder may be somebody else's, with a job of theirs that runs."""

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    cluster = cluster_of()
    folder = tmp_path / "output" / "cluster" / "earlier"
    folder.mkdir(parents=True)
    (tmp_path / "slurm" / "hold").touch()
    fake_slurm_job = {"script": "", "process": 0, "state": "RUNNING", "exit": str(tmp_path / "none")}
    (tmp_path / "slurm" / "7.json").write_text(json.dumps(fake_slurm_job))
    (folder / "7_submitted.pkl").write_bytes(pickle.dumps(Attack()))
    assert len(cluster.submit([(script_job("a"),)])) == 1
    assert not (tmp_path / "attacked").exists()


def test_what_was_cancelled_is_submitted_by_the_next_call_only(cluster_of, tmp_path: Path) -> None:
    unit = (script_job("a", f"if attempts == 1: {SLEEP}"),)
    cluster = cluster_of(retries=2)

    def cancel_at_once(status: Status, event: str) -> None:
        if attempts_of(tmp_path / "output", "a"):
            fake_slurm.scancel("1")

    status = cluster.run([unit], cancel_at_once)
    assert status.failed["a"].startswith("CANCELLED")
    status, _ = run(cluster_of(), unit)
    assert status.finished == {"a"}
    assert attempts_of(tmp_path / "output", "a") == 2


def test_a_lost_job_is_submitted_again_as_often_as_retries_say(cluster_of, tmp_path: Path) -> None:
    ends = []

    def lose_it(status: Status, event: str) -> None:
        if attempts_of(tmp_path / "output", "unlucky") > len(ends):
            ends.append(event)
            fake_slurm._end(str(len(ends)), "NODE_FAIL")

    status = cluster_of(retries=1).run([(script_job("unlucky", SLEEP),)], lose_it)
    assert len(ends) == 2
    assert status.failed["unlucky"].startswith("NODE_FAIL")


def test_over_its_time_a_job_is_requeued_and_goes_on(cluster_of, tmp_path: Path) -> None:
    unit = (script_job("train"), script_job("test", f"if attempts == 1: {SLEEP}", needs="train"))
    cluster = cluster_of()
    cluster.submit([unit])
    output = tmp_path / "output"
    wait_for(lambda: attempts_of(output, "test") == 1)
    (run_of_it,) = (tmp_path / "output" / "test" / "pid").read_text().split()
    node = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", run_of_it]))
    for process in (node, int(run_of_it)):  # Slurm signals all processes of a job
        os.kill(process, signal.SIGUSR2)
    status, events = run(cluster, unit)
    assert status.finished == {"train", "test"}
    assert events[0] == "submitted 0 Slurm jobs"
    assert (attempts_of(output, "train"), attempts_of(output, "test")) == (1, 2)


def test_two_sweeps_at_once_submit_a_run_once(cluster_of, tmp_path: Path, monkeypatch) -> None:
    """The second one looks at what is submitted when the first has done so."""
    monkeypatch.setattr(
        "experiments.cluster.cluster._ctrl_c_ignored", contextlib.nullcontext
    )  # of the main thread
    first, second, looked = cluster_of(), cluster_of(), threading.Event()

    def look_slowly(live=first._live) -> list[str]:
        found = list(live())
        looked.wait(1.0)  # long enough for the second one, were it not kept out
        return found

    def look(live=second._live) -> list[str]:
        looked.set()
        return list(live())

    monkeypatch.setattr(first, "_live", look_slowly)
    monkeypatch.setattr(second, "_live", look)
    unit = (script_job("slow", SLEEP),)
    with ThreadPoolExecutor() as pool:
        submitted = [pool.submit(cluster.submit, [unit]) for cluster in (first, second)]
    assert sorted(len(each.result()) for each in submitted) == [0, 1]


def test_ctrl_c_leaves_the_jobs_in_slurm_and_says_so(cluster_of, tmp_path: Path) -> None:
    def ctrl_c(status: Status, event: str) -> None:
        if status.running:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^the jobs go on in Slurm.*to stop them: scancel 1$"):
        cluster_of().run([(script_job("slow", SLEEP),)], ctrl_c)
    assert fake_slurm.state_of("1") == "RUNNING"


def test_after_the_last_result_ctrl_c_leaves_no_job(cluster_of, tmp_path: Path) -> None:
    """Though Slurm still counts the job that made it as running."""
    cluster = cluster_of()
    cluster.submit([(job := script_job("slow", SLEEP),)])
    assert "scancel 1" in cluster.interrupted(Status([job]))
    assert cluster.interrupted(Status([job], finished={"slow"})).startswith("no job is left in Slurm")


def test_results_may_be_seen_later_than_the_end(cluster_of, tmp_path: Path) -> None:
    """As on a network file system."""
    cluster = cluster_of()
    cluster.settle_seconds = 3600.0
    cluster.submit([(script_job("late", SLEEP),)])
    wait_for(lambda: attempts_of(tmp_path / "output", "late") == 1)
    fake_slurm._end("1", "COMPLETED")
    looks = 0

    def appear(status: Status, event: str) -> None:
        nonlocal looks
        looks += not event
        if looks == 3:
            (tmp_path / "output" / "late" / "result.json").write_text('{"results": {"accuracy": 1.0}}')

    assert cluster.run([(script_job("late", SLEEP),)], appear).finished == {"late"}


# --- what Slurm says


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts programs of Slurm on PATH that say what they are told to."""

    def write(name: str, stdout: str = "", stderr: str = "", code: int = 0) -> Path:
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\ncat <<'END'\n{stdout}\nEND\necho '{stderr}' >&2\nexit {code}\n")
        file.chmod(0o755)
        return file

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for name in ("sbatch", "srun", "squeue", "scancel"):
        write(name)
    return write


@pytest.mark.parametrize(
    ("queue", "live"),
    [
        ("7_1|RUNNING|None\n7_2|PENDING|Resources", {"7_1", "7_2"}),
        ("7_2|REQUEUED|None\n7_1|COMPLETING|None", {"7_1", "7_2"}),
        ("7_2|OUT_OF_MEMORY|OutOfMemory\n7_1|CANCELLED|None\n7_3|NODE_FAIL|None", set()),
    ],
)
def test_what_is_live_in_the_queue(answers, queue: str, live: set[str]) -> None:
    answers("squeue", queue)
    assert {job for job, state in slurm.queued(["7_1", "7_2"]).items() if state.live} == live
    assert slurm.queued([]) == {}


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***",
        "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT ***",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0",
    ],
)
def test_a_log_tells_how_slurm_ended_a_job(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text(f"started a\n{line}\nsrun: forcing job termination\n")
    assert slurm.last_words(tmp_path / "log") == line


def test_nothing_is_submitted_while_slurm_is_silent(cluster_of, tmp_path: Path) -> None:
    cluster_of().submit([(script_job("a", SLEEP),)])
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    with pytest.raises(OSError, match=r"squeue failed: .*Unable to contact slurm controller"):
        cluster_of().submit([(script_job("a"),), (script_job("b"),)])
    assert len(list((tmp_path / "slurm").glob("*.json"))) == 1


def test_what_slurm_refuses_is_said_in_its_words(answers, tmp_path: Path) -> None:
    answers("sbatch", stderr="sbatch: error: invalid partition specified: gpus", code=1)
    cluster = Cluster(tmp_path, ClusterOptions("slurm", partition="gpus"))
    with pytest.raises(ValueError, match=r"^Slurm refused the jobs: .*invalid partition specified: gpus\.$"):
        cluster.submit([(script_job("a"),)])
    assert not list(tmp_path.glob("cluster/*/*_submitted.pkl"))


def test_gpus_that_are_not_there_are_hinted_at(answers, tmp_path: Path) -> None:
    answers("sbatch", stderr="sbatch: error: Invalid generic resource (gres) specification", code=1)
    cluster = Cluster(tmp_path, ClusterOptions("slurm", gpus_per_job=1))
    with pytest.raises(ValueError, match=r"\(gres\) specification\. Where .* give --gpus-per-job 0\.$"):
        cluster.submit([(script_job("a"),)])


def test_large_sweeps_become_several_arrays(answers, tmp_path: Path) -> None:
    answers("scontrol", "MaxArraySize            = 2")
    answers("sbatch", "Submitted batch job 9")
    cluster = Cluster(tmp_path, ClusterOptions("slurm", array_parallelism=1))
    jobs = cluster.submit([(script_job(name),) for name in "abc"])
    assert [job.id for job in jobs] == ["9_0", "9_1", "9"]
    first = next(file for file in tmp_path.glob("cluster/*/*.sh") if "--array" in file.read_text())
    assert "--array=0-1%1" in first.read_text()


def test_slurms_commands_are_missed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="--cluster slurm: there is no sbatch on this machine"):
        ClusterOptions("slurm")
    with pytest.raises(OSError, match="There is no squeue on this machine"):
        slurm.queued(["7"])


# --- flags


def options(*words: str) -> ClusterOptions | None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus-per-job", type=int, default=1)
    parser.add_argument("--jobs-per-gpu", default="1")
    parser.add_argument("--workers", type=int, default=0)
    add_arguments(parser)
    return ClusterOptions.from_arguments(parser.parse_args(words))


def test_without_a_cluster_its_flags_are_refused() -> None:
    assert options() is None
    with pytest.raises(ValueError, match="--partition is for a cluster: give --cluster, too"):
        options("--partition", "gpu")


def test_flags_reach_sbatch(answers, tmp_path: Path) -> None:
    words = (
        "--cluster slurm --partition gpu --account me --qos low --time 90 --gpus-per-job 2 --cpus-per-job 8"
    )
    words += (
        " --mem-gb 32 --array-parallelism 5 --slurm constraint=a100 --slurm mail-type=END --slurm requeue"
    )
    answers("sbatch", "Submitted batch job 9")
    wanted = options(*words.split(), "--setup", "source .venv/bin/activate")
    assert wanted is not None
    cluster = Cluster(tmp_path, wanted)
    cluster.submit([(script_job("a"),)])
    (file,) = tmp_path.glob("cluster/*/9_submission.sh")
    lines = file.read_text().splitlines()
    for line in (
        *("partition=gpu", "account=me", "qos=low", "time=90", "gpus-per-node=2", "cpus-per-task=8"),
        *("mem=32GB", "constraint=a100", "mail-type=END", "requeue", f"chdir={ROOT}"),
    ):
        assert f"#SBATCH --{line}" in lines
    assert "source .venv/bin/activate" in lines
    assert f"export PYTHONPATH={ROOT}${{PYTHONPATH:+:$PYTHONPATH}}" in lines
    assert "export SRUN_CPUS_PER_TASK=8" in lines


@pytest.mark.parametrize(
    ("words", "gpus", "at_once"),
    [
        ([], 1, 1),
        (["--jobs-per-gpu", "3"], 1, 3),
        (["--gpus-per-node", "8", "--jobs-per-gpu", "3"], 8, 24),
        (["--gpus-per-node", "8", "--gpus-per-job", "2"], 8, 4),
        (["--jobs-per-gpu", "auto"], 1, 1),
        (["--gpus-per-job", "0", "--workers", "4"], 0, 4),
    ],
)
def test_jobs_ask_for_gpus_and_share_them(answers, words: list[str], gpus: int, at_once: int) -> None:
    wanted = options("--cluster", "slurm", *words)
    assert wanted is not None
    assert wanted.parameters().get("gpus_per_node", 0) == gpus
    assert wanted.at_once == at_once


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--time", "0"], "--time is 0; allowed are 1 or more minutes"),
        (["--cpus-per-job", "-1"], "--cpus-per-job is -1; allowed is 0 or more"),
        (["--slurm", "time=5"], "--slurm time=5: give --time instead"),
        (["--slurm", "=5"], "--slurm =5: give an option of sbatch as KEY=VALUE"),
        (
            ["--gpus-per-node", "1", "--gpus-per-job", "2"],
            "--gpus-per-node is 1, and --gpus-per-job 2; a run",
        ),
    ],
)
def test_wrong_flags_are_named(answers, words: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        options("--cluster", "slurm", *words)
