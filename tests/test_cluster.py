"""Sweeps by submitit in processes of this machine, and what a cluster's words become."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from script_jobs import attempts_of, script_job

from experiments.cluster import slurm
from experiments.cluster.cluster import Cluster
from experiments.cluster.options import ClusterOptions, add_arguments
from experiments.cluster.processes import kill_with_children, started
from experiments.cluster.states import UnitStates
from experiments.cluster.submissions import Submission, Submissions
from experiments.sweeps.queue import Status

pytest.importorskip("submitit")

SLEEP = "time.sleep(60)"


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    """Makes local clusters that look every tenth of a second; they are stopped in the end."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))  # where the processes find script_jobs
    made: list[Cluster] = []

    def make(retries: int = 0, at_once: int = 4) -> Cluster:
        made.append(
            Cluster(tmp_path / "output", ClusterOptions("local", array_parallelism=at_once), retries=retries)
        )
        made[-1].seconds = made[-1].unit_states.settle_seconds = 0.1
        return made[-1]

    yield make
    for cluster in made:
        cluster.cancel()


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "too slow"
        time.sleep(0.1)


def test_units_run_and_a_failure_stops_no_other(local, tmp_path: Path) -> None:
    cluster = local()
    good = (script_job("train"), script_job("test", needs="train"))
    bad = (
        script_job("bad", "raise ValueError('no such shots')"),
        script_job("bad test", needs="bad"),
    )
    assert cluster.submit([good, bad]) == ["train", "bad"]
    *_, last = cluster.watch()
    assert last.counts == {"done": 1, "failed": 1}
    assert last.units["bad"].detail == "ValueError: no such shots"
    assert last.units["bad"].log is not None
    assert last.units["bad"].log.is_file()
    assert (tmp_path / "output" / "test" / "result.json").is_file()
    assert "no such shots" in (tmp_path / "output" / "bad" / "error.txt").read_text()


def test_only_as_many_as_wanted_run_at_once(local) -> None:
    cluster = local(at_once=1)
    cluster.submit([(script_job(name),) for name in "ab"])
    for progress in cluster.watch():
        assert progress.counts.get("running", 0) <= 1
    assert progress.counts == {"done": 2}


def test_a_second_call_submits_nothing_twice(local, tmp_path: Path) -> None:
    units = [(script_job("slow", "time.sleep(3)"),), (script_job("bad", "sys.exit('no')"),)]
    first = local()
    assert first.submit(units) == ["slow", "bad"]
    second = local()
    assert second.submit([units[0]]) == []
    assert second.states()["slow"].state == "running"
    *_, last = first.watch()
    assert last.counts == {"done": 1, "failed": 1}
    assert [progress.counts for progress in second.watch()][-1] == {"done": 1}
    assert attempts_of(tmp_path / "output", "slow") == 1
    # What failed is tried again by a new call; what is done is not.
    assert local().submit(units) == ["bad"]


def test_a_sweep_that_wants_more_of_a_unit_gets_it(local, tmp_path: Path) -> None:
    short = (script_job("train"),)
    cluster = local()
    cluster.submit([short])
    list(cluster.watch())
    longer = (*short, script_job("test", needs="train"))
    cluster = local()
    assert cluster.submit([longer]) == ["train"]
    assert [progress.counts for progress in cluster.watch()][-1] == {"done": 1}
    assert attempts_of(tmp_path / "output", "train") == 1


def test_cancelled_units_end_with_all_that_they_started(local, tmp_path: Path) -> None:
    cluster = local(retries=1)
    script = f"(folder / 'pid').write_text(str(__import__('os').getpid())); {SLEEP}"
    cluster.submit([(script_job("slow", script),)])
    pid = tmp_path / "output" / "slow" / "pid"
    wait_for(lambda: pid.is_file() and pid.read_text() != "")
    assert cluster.cancel() == ["slow"]
    wait_for(lambda: not started([int(pid.read_text())]))
    progress = next(cluster.watch())
    assert progress.units["slow"].state == "failed"
    assert progress.units["slow"].detail == "CANCELLED: stopped"
    assert attempts_of(tmp_path / "output", "slow") == 1


def test_a_killed_unit_is_submitted_again_as_often_as_retries_say(local, tmp_path: Path) -> None:
    cluster = local(retries=1)
    cluster.submit([(script_job("unlucky", SLEEP),)])
    jobs = []
    for progress in cluster.watch():
        state = progress.units["unlucky"]
        if state.state == "running" and attempts_of(tmp_path / "output", "unlucky") > len(jobs):
            jobs.append(state.job)
            kill_with_children(int(state.job))
    assert len(jobs) == 2
    assert len(set(jobs)) == 2
    assert progress.units["unlucky"].state == "lost"


def test_a_preempted_unit_goes_on(local, tmp_path: Path) -> None:
    cluster = local()
    cluster.submit([(script_job("train"), script_job("test", f"if attempts == 1: {SLEEP}", needs="train"))])
    output = tmp_path / "output"
    wait_for(lambda: attempts_of(output, "test") == 1)
    controller = cluster.states()["train"].job
    (worker,) = subprocess.check_output(["ps", "--ppid", controller, "-o", "pid="], text=True).split()
    os.kill(int(worker), signal.SIGUSR2)
    assert [progress.counts for progress in cluster.watch()][-1] == {"done": 1}
    assert (attempts_of(output, "train"), attempts_of(output, "test")) == (1, 2)


def test_the_view_hears_of_every_run(local, tmp_path: Path) -> None:
    events: list[str] = []

    def changed(status: Status, event: str) -> None:
        events.extend([event] if event else [])

    units = [
        (script_job("train"), script_job("test", needs="train")),
        (script_job("bad", "sys.exit('no')"), script_job("bad test", needs="bad")),
    ]
    status = local().run(units, changed)
    assert status.finished == {"train", "test"}
    assert status.failed.keys() == {"bad", "bad test"}
    assert status.failed["bad"].startswith("no (see ")
    assert not status.running
    assert events[0] == "submitted 2 of 2 units"
    assert any(re.fullmatch(r"finished train in \d+ s: accuracy 50.00 %", event) for event in events)
    assert any(event.startswith("failed   bad: no (see ") for event in events)
    assert "failed   bad test: not run, since bad failed" in events


def test_ctrl_c_stops_local_processes_and_says_so(local, tmp_path: Path) -> None:
    cluster = local()

    def changed(status: Status, event: str) -> None:
        if attempts_of(tmp_path / "output", "slow"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="local jobs that were stopped: 1; the same command goes on"):
        cluster.run([(script_job("slow", SLEEP),)], changed)
    assert cluster.states()["slow"].state == "failed"


def test_a_process_of_another_machine_is_not_guessed_at(local, tmp_path: Path) -> None:
    cluster = local()
    with cluster.submissions.changing() as submissions:
        submissions["far"] = Submission("local", "1", "cluster/x", ["far"], host="elsewhere", started="then")
    with pytest.raises(OSError, match=r"started on elsewhere.*Nothing was submitted"):
        cluster.submit([(script_job("far"),)])


# What Slurm says


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
    write("sacct", stderr="Slurm accounting storage is disabled", code=1)
    return write


def states_of(tmp_path: Path, **submission: str) -> tuple[UnitStates, dict[str, Submission]]:
    states = UnitStates(tmp_path)
    states.settle_seconds = 0.0
    return states, {"a": Submission("slurm", "7_2", "cluster/x", ["a"], **submission)}


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ("7_1|RUNNING|None\n7_2|PENDING|Resources", ("pending", "Resources")),
        ("7_2|REQUEUED|None", ("pending", "")),
        ("7_2|COMPLETING|None", ("running", "")),
        ("7_2|OUT_OF_MEMORY|OutOfMemory", ("failed", "OUT_OF_MEMORY")),
        ("7_2|CANCELLED|None", ("failed", "CANCELLED")),
        ("7_2|NODE_FAIL|None", ("failed", "NODE_FAIL")),
        ("7_1|RUNNING|None", ("lost", "It ended and left neither a result nor an error.")),
    ],
)
def test_states_from_the_queue(answers, tmp_path: Path, queue: str, expected: tuple[str, str]) -> None:
    answers("squeue", queue)
    states, submissions = states_of(tmp_path)
    found = states.find({"a": (script_job("a"),)}, submissions)["a"]
    assert (found.state, found.detail) == expected


def test_an_end_is_remembered_when_slurm_forgets(answers, tmp_path: Path) -> None:
    states, submissions = states_of(tmp_path)
    unit = {"a": (script_job("a"),)}
    answers("squeue", "7_2|TIMEOUT|TimeLimit")
    assert states.find(unit, submissions)["a"].detail == "TIMEOUT"
    answers("squeue", stderr="slurm_load_jobs error: Invalid job id specified", code=1)
    assert states.find(unit, submissions)["a"].detail == "TIMEOUT"


def test_the_accounting_is_asked_where_there_is_one(answers, tmp_path: Path) -> None:
    answers("sacct", "7_1|COMPLETED\n7_2|CANCELLED by 1000")
    states, submissions = states_of(tmp_path)
    assert states.find({"a": (script_job("a"),)}, submissions)["a"].detail == "CANCELLED"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***", "CANCELLED"),
        ("slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT ***", "TIMEOUT"),
        ("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01 DUE TO NODE FAILURE ***", "NODE_FAIL"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0", "OUT_OF_MEMORY"),
    ],
)
def test_a_log_tells_what_slurm_has_forgotten(answers, tmp_path: Path, line: str, expected: str) -> None:
    states, submissions = states_of(tmp_path)
    log = states.log(submissions["a"])
    log.parent.mkdir(parents=True)
    log.write_text(f"{line}\nsrun: forcing job termination\n")
    found = states.find({"a": (script_job("a"),)}, submissions)["a"]
    assert (found.state, found.detail, found.log) == ("failed", f"{expected}: {line}", log)


def test_a_result_may_be_seen_later_than_the_end(answers, tmp_path: Path) -> None:
    answers("squeue", "7_2|COMPLETED|None")
    states, submissions = states_of(tmp_path)
    states.settle_seconds = 0.5
    unit = {"a": (script_job("a"),)}
    assert states.find(unit, submissions)["a"].state == "running"
    time.sleep(0.6)
    assert states.find(unit, submissions)["a"].detail == "COMPLETED"


def test_nothing_is_submitted_while_slurm_is_silent(answers, tmp_path: Path) -> None:
    answers("squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    cluster = Cluster(tmp_path, ClusterOptions("slurm"))
    with cluster.submissions.changing() as submissions:
        submissions["a"] = Submission("slurm", "7", "cluster/x", ["a"])
    with pytest.raises(OSError, match=r"squeue failed.*Unable to contact.*Nothing was submitted: 1 jobs may"):
        cluster.submit([(script_job("a"),), (script_job("b"),)])
    assert cluster.states()["a"].state == "unknown"


def test_what_slurm_refuses_is_said_in_its_words(answers, tmp_path: Path) -> None:
    answers("sbatch", stderr="sbatch: error: invalid partition specified: gpus", code=1)
    cluster = Cluster(tmp_path, ClusterOptions("slurm", partition="gpus"))
    with pytest.raises(ValueError, match=r"^Slurm refused the jobs: .*invalid partition specified: gpus\.$"):
        cluster.submit([(script_job("a"),)])
    assert Submissions(tmp_path / "cluster").read() == {}


def test_gpus_that_are_not_there_are_hinted_at(answers, tmp_path: Path) -> None:
    answers("sbatch", stderr="sbatch: error: Invalid generic resource (gres) specification", code=1)
    cluster = Cluster(tmp_path, ClusterOptions("slurm", gpus_per_job=1))
    with pytest.raises(ValueError, match=r"\(gres\) specification\. Where .* give --gpus-per-job 0\.$"):
        cluster.submit([(script_job("a"),)])


def test_large_sweeps_become_several_arrays(answers, tmp_path: Path) -> None:
    answers("scontrol", "MaxArraySize            = 2")
    answers("sbatch", "Submitted batch job 9")
    cluster = Cluster(tmp_path, ClusterOptions("slurm", array_parallelism=1))
    assert cluster.submit([(script_job(name),) for name in "abc"]) == ["a", "b", "c"]
    jobs = [each.job for each in Submissions(tmp_path / "cluster").read().values()]
    assert jobs == ["9_0", "9_1", "9"]
    first = next(file for file in tmp_path.glob("cluster/*/*.sh") if "--array" in file.read_text())
    assert "--array=0-1%1" in first.read_text()


def test_slurms_commands_are_missed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="--cluster slurm: there is no sbatch on this machine"):
        ClusterOptions("slurm")
    with pytest.raises(OSError, match="There is no squeue on this machine"):
        slurm.queued(["7"])


# Flags


def options(*words: str) -> ClusterOptions | None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus-per-job", type=int, default=1)
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
    ("words", "error"),
    [
        (["--time", "0"], "--time is 0; allowed are 1 or more minutes"),
        (["--cpus-per-job", "-1"], "--cpus-per-job is -1; allowed is 0 or more"),
        (["--slurm", "time=5"], "--slurm time=5: give --time instead"),
        (["--slurm", "=5"], "--slurm =5: give an option of sbatch as KEY=VALUE"),
        (["--cluster", "local", "--qos", "low"], "--qos is for --cluster slurm"),
    ],
)
def test_wrong_flags_are_named(answers, words: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        options("--cluster", "slurm", *words)


def test_a_foreign_list_of_jobs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    file = tmp_path / "cluster" / "jobs.json"
    file.write_text(json.dumps({"units": [1]}))
    with pytest.raises(ValueError, match=r"jobs\.json is no list of submitted jobs"):
        Submissions(tmp_path / "cluster").read()
