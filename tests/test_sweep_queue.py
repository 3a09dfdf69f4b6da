"""The queue of a sweep: what fails stops nothing, what is stopped loses nothing. The runs are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import ROOT

from experiments.plans import Planned
from experiments.run_folder import read_result, state
from experiments.sweeps import queue
from experiments.sweeps.devices import Devices
from experiments.sweeps.job import Job
from experiments.sweeps.queue import Queue, jobs_by_state

FAKE = Path(__file__).parent / "fake_train.py"


def job(name: str, seed: int = 1, needs: str = "") -> Job:
    """A run in the folder NAME/seed<SEED>; the name tells the stand-in what to do."""
    planned = Planned(
        *(f"{name}/seed{seed}", "base2new", "MaPLe", "MaPLe", "shapes", "shapes", "base", "base", 16, seed),
        trains=not needs,
    )
    return Job(planned, (), needs=needs, weights=needs)


@pytest.fixture
def fake(tmp_path) -> str:
    """An interpreter that runs the stand-in whatever it is asked to run."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def sweep(jobs: list[Job], output: Path, fake: str, workers: int = 2, retries: int = 0):
    events: list[str] = []
    runs = Queue(jobs, output, Devices(workers=workers), retries, python=fake)
    status = runs.run(lambda status, event: events.append(event) if event else None)
    return status, events


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().split())


def test_all_runs_end_with_a_result_and_are_not_run_again(tmp_path, fake):
    jobs = [job("short", seed) for seed in (1, 2, 3)]
    status, events = sweep(jobs, tmp_path, fake)
    assert status.finished == {each.folder for each in jobs}
    assert sum("finished short/seed2 in" in event for event in events) == 1
    assert events[-1].endswith("accuracy 80.00 %")

    status, events = sweep(jobs, tmp_path, fake)
    assert status.finished == {each.folder for each in jobs}
    assert events == ["with a result from before: 3 of 3 runs"]
    assert [starts(tmp_path / each.folder) for each in jobs] == [1, 1, 1]


def test_never_more_runs_at_once_than_there_are_workers(tmp_path, fake):
    most = 0

    def look(status, event):
        nonlocal most
        most = max(most, len(status.running))

    Queue([job("short", seed) for seed in range(5)], tmp_path, Devices(workers=2), python=fake).run(look)
    assert most == 2


def test_a_failed_run_stops_no_other_and_leaves_its_reason(tmp_path, fake):
    status, _ = sweep([job("crash"), job("short"), job("killed"), job("wrong")], tmp_path, fake)
    assert status.finished == {"short/seed1"}
    assert status.failed["crash/seed1"] == "RuntimeError: out of memory"
    assert status.failed["wrong/seed1"] == "train.py: DATASET.ROOT is wrong; give another."
    assert status.failed["killed/seed1"].startswith("killed by SIGKILL"), "and not a warning before that"
    assert state(tmp_path / "crash/seed1") == ("failed", "RuntimeError: out of memory")
    assert state(tmp_path / "killed/seed1") == ("failed", status.failed["killed/seed1"])
    assert not list(tmp_path.glob("*/*/.stderr"))
    assert jobs_by_state(status) == {"finished": 1, "failed": 3, "running": 0, "elsewhere": 0, "waiting": 0}


def test_a_folder_that_cannot_be_written_fails_its_run_alone(tmp_path, fake):
    (tmp_path / "bad").write_text("a file where the folder should be")
    status, _ = sweep([job("short"), job("bad"), job("other")], tmp_path, fake, retries=1)
    assert status.finished == {"short/seed1", "other/seed1"}
    assert str(tmp_path / "bad") in status.failed["bad/seed1"]


def test_files_of_runs_that_cannot_start_yet_are_not_read(tmp_path, fake, monkeypatch):
    """A sweep of thousands of runs on a network file system asks for few files."""
    jobs = [job("short", seed) for seed in range(8)]
    looked: Counter[Path] = Counter()

    def counted(folder: Path):
        looked[folder] += 1
        return read_result(folder)

    monkeypatch.setattr(queue, "read_result", counted)
    status, _ = sweep(jobs, tmp_path, fake, workers=1)
    assert status.finished == {each.folder for each in jobs}
    assert set(looked.values()) == {3}  # once for all at the start, before it starts, and when it ends


def test_what_waits_is_looked_at_where_a_run_has_ended_alone(tmp_path, fake, monkeypatch):
    """While runs go on, a sweep of thousands takes nearly nothing of a core."""
    monkeypatch.setattr(queue, "POLL", 0.001)
    jobs, devices, asked = [job("short", seed) for seed in range(3)], Devices(workers=1), []
    take = devices.take
    monkeypatch.setattr(devices, "take", lambda kind: asked.append(kind) or take(kind))
    status = Queue(jobs, tmp_path, devices, python=fake).run(lambda status, event: None)
    assert len(status.finished) == 3
    assert len(asked) <= 3 * len(jobs), "and not in each of some hundred rounds"


def test_a_failed_run_is_tried_again_as_often_as_told(tmp_path, fake):
    status, _ = sweep([job("crash"), job("once"), job("wrong")], tmp_path, fake, retries=2)
    assert status.finished == {"once/seed1"}
    assert starts(tmp_path / "crash/seed1") == 3
    assert starts(tmp_path / "once/seed1") == 2
    assert starts(tmp_path / "wrong/seed1") == 1  # it would say the same again
    assert state(tmp_path / "once/seed1") == ("finished", "")
    assert not (tmp_path / "once/seed1/error.txt").exists()


def test_a_test_waits_for_its_training(tmp_path, fake):
    jobs = [job("new", needs="short/seed1"), job("short")]
    _, events = sweep(jobs, tmp_path, fake)
    assert [event.split()[:2] for event in events] == [
        ["started", "short/seed1"],
        ["finished", "short/seed1"],
        ["started", "new/seed1"],
        ["finished", "new/seed1"],
    ]


def test_the_tests_of_a_failed_training_are_failed_too(tmp_path, fake):
    status, _ = sweep([job("crash"), job("new", needs="crash/seed1"), job("short")], tmp_path, fake)
    assert status.failed["new/seed1"] == "its training failed: crash/seed1"
    assert not (tmp_path / "new/seed1").exists()


def test_a_run_of_another_sweep_is_left_to_it(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(queue, "LOOK_AGAIN", 0.1)
    (tmp_path / "short/seed1").mkdir(parents=True)
    lock = FileLock(tmp_path / "short/seed1/.lock")
    lock.acquire()
    seen = set()

    def look(status, event):
        seen.update(status.elsewhere)
        if status.finished and lock.is_locked:  # the other run is finished here, and this one may end
            (tmp_path / "short/seed1/result.json").write_text('{"results": {}}')
            lock.release()

    status = Queue([job("short"), job("other")], tmp_path, Devices(workers=1), python=fake).run(look)
    assert seen == {"short/seed1"}
    assert status.finished == {"short/seed1", "other/seed1"}
    assert not (tmp_path / "short/seed1/starts").exists()


def driver(output: Path, fake: str, sigint: str = "default_int_handler") -> subprocess.Popen:
    """A sweep of three runs, of which the second takes long, in a group of processes of its own."""
    program = (
        f"import signal, sys; signal.signal(signal.SIGINT, signal.{sigint}); sys.path[:0] = ['tests'];"
        "from test_sweep_queue import *; queue.PATIENCE = 3600;"
        f"sweep([job('first'), job('slow'), job('third')], Path({str(output)!r}), {fake!r}, workers=1)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_its_runs_and_goes_on_later(tmp_path, fake, end):
    process = driver(tmp_path, fake)
    until(lambda: (tmp_path / "slow/seed1/starts").exists() and (tmp_path / "slow/seed1/log.txt").exists())
    os.kill(process.pid, end)  # to the sweep alone, not to its runs
    _, said = process.communicate(timeout=300)
    assert b"KeyboardInterrupt" in said
    assert (tmp_path / "slow/seed1/interrupted").exists()
    assert state(tmp_path / "slow/seed1") == ("interrupted", "")
    assert state(tmp_path / "first/seed1") == ("finished", "")
    assert state(tmp_path / "third/seed1") == ("missing", "")


def test_in_the_background_where_ctrl_c_is_ignored_it_ends_at_sigterm(tmp_path, fake):
    process = driver(tmp_path, fake, sigint="SIG_IGN")
    until(lambda: (tmp_path / "slow/seed1/log.txt").exists())
    run = int((tmp_path / "slow/seed1/starts").read_text())
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=300)
    assert not is_alive(run)
    assert state(tmp_path / "slow/seed1") == ("interrupted", "")


def test_killed_with_all_its_runs_it_goes_on_where_it_was(tmp_path, fake):
    process = driver(tmp_path, fake)
    until(lambda: (tmp_path / "slow/seed1/log.txt").exists())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run = int((tmp_path / "slow/seed1/starts").read_text())
    until(lambda: not is_alive(run))
    assert state(tmp_path / "slow/seed1") == ("interrupted", "")

    status, _ = sweep([job("first"), job("third")], tmp_path, fake)
    assert status.finished == {"first/seed1", "third/seed1"}
    assert starts(tmp_path / "first/seed1") == 1


# --- room on devices

GB = 10**9


def test_gpus_take_turns():
    gpus = Devices([80 * GB, 80 * GB], per_gpu=2)
    places = [gpus.take(("MaPLe",)) for _ in range(5)]
    assert [place and place.gpus for place in places] == [(0,), (1,), (0,), (1,), None]
    assert places[1].environment == {"CUDA_VISIBLE_DEVICES": "1"}
    gpus.free(places[1])
    assert gpus.take(("MaPLe",)).gpus == (1,)


def test_a_run_on_several_gpus_sees_them_all():
    gpus = Devices([80 * GB] * 4, gpus_per_run=2, names=["4", "5", "6", "7"])
    assert [gpus.take(("MaPLe",)).environment["CUDA_VISIBLE_DEVICES"] for _ in range(2)] == ["4,5", "6,7"]
    assert gpus.take(("MaPLe",)) is None
    with pytest.raises(ValueError, match=r"--gpus-per-job is 5; there are 4 GPUs\."):
        Devices([80 * GB] * 4, gpus_per_run=5)


def test_as_many_runs_share_a_gpu_as_were_measured_to_fit():
    gpu = Devices([80 * GB], per_gpu=0)
    first = gpu.take(("MaPLe",))
    assert gpu.take(("MaPLe",)) is None  # not measured yet: alone
    gpu.free(first)
    gpu.learn(("MaPLe",), {"peak_memory_bytes": {"device": 20 * GB}})
    assert [gpu.take(("MaPLe",)) is not None for _ in range(4)] == [True, True, True, False]
    assert gpu.take(("CoOp",)) is None


def test_on_a_cpu_the_cores_are_shared_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("experiments.sweeps.devices.cores", lambda: 8)
    cpu = Devices(workers=2)
    assert cpu.take(("MaPLe",)).environment == {"OMP_NUM_THREADS": "4"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu.take(("MaPLe",)).environment == {}
    assert cpu.take(("MaPLe",)) is None


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (-9, "UserWarning: this DataLoader will create 8 worker processes", "killed by SIGKILL"),
        (137, "UserWarning: another line", "killed by SIGKILL"),  # as a shell or a container says it
        (143, "", "killed by SIGTERM"),
        (1, "exitcode  : -9 (pid: 7)\n====", "killed by SIGKILL"),  # torchrun, of one of its processes
        (1, "RuntimeError: no", "RuntimeError: no"),
        (200, "odd", "odd"),
    ],
)
def test_a_killed_run_says_so_whatever_it_printed(tmp_path, code, stderr, reason):
    (tmp_path / "stderr").write_text(stderr)
    assert queue._reason(code, tmp_path / "stderr").startswith(reason)
