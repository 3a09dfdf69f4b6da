"""Stands in for Slurm's programs: jobs are processes of this machine.

`install(folder)` puts sbatch, srun, squeue, scancel and scontrol there. Each job is a file `<id>.json` in the
folder of the environment variable FAKE_SLURM: its script, its process, and its state.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
KEEPER = 'bash "$1"; echo $? > "$2"'  # a job's script, and the file of its exit code


def install(folder: Path) -> None:
    for name in PROGRAMS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        path.chmod(0o755)


def _places() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def _start(job: str, script: str) -> None:
    """Starts a job that waits; a file `hold` in the folder keeps all waiting."""
    exit_file = str(_places() / f"{job}.{time.time_ns()}.exit")  # a requeued job has another one
    content = {"script": script, "process": 0, "state": "PENDING", "exit": exit_file}
    if not (_places() / "hold").exists():
        array, _, task = job.partition("_")
        own = {"SLURM_JOB_ID": array}
        if task:
            own |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task}
        process = subprocess.Popen(
            ["bash", "-c", KEEPER, "bash", script, exit_file],
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        content |= {"process": process.pid, "state": "RUNNING"}
    (_places() / f"{job}.json").write_text(json.dumps(content))


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    number = str(1 + max((int(path.stem.partition("_")[0]) for path in _places().glob("*.json")), default=0))
    array = re.search(r"--array=0-(\d+)", text)
    for job in [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [number]:
        _start(job, script)
    print(f"Submitted batch job {number}")


def srun(*words: str) -> None:
    job = "_".join(filter(None, [os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID")]))
    left = list(words)
    while left[0].startswith("--"):
        word = left.pop(0)
        if word in ("--output", "--error"):
            path = left.pop(0).replace("%A_%a", job).replace("%j", job).replace("%t", "0")
            stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(stream, 1 if word == "--output" else 2)
    os.execvp(left[0], left)


def state_of(job: str) -> str:
    content = json.loads((_places() / f"{job}.json").read_text())
    ended = Path(content["exit"])
    if content["state"] != "RUNNING":
        return content["state"]
    if ended.exists() and ended.read_text().strip():
        return "COMPLETED" if ended.read_text().strip() == "0" else "FAILED"
    return "RUNNING"


def squeue(*words: str) -> None:
    wanted = next(word for word in words if word.startswith("--jobs=")).removeprefix("--jobs=").split(",")
    for path in sorted(_places().glob("*.json")):
        if path.stem.partition("_")[0] in wanted:
            print(f"{path.stem}|{state_of(path.stem)}|None")


def _end(job: str, state: str) -> None:
    path = _places() / f"{job}.json"
    content = json.loads(path.read_text())
    if content["process"] and state_of(job) == "RUNNING":
        os.killpg(content["process"], signal.SIGKILL)
    path.write_text(json.dumps({**content, "state": state}))


def scancel(*ids: str) -> None:
    for path in _places().glob("*.json"):
        if path.stem in ids or path.stem.partition("_")[0] in ids:
            _end(path.stem, "CANCELLED")


def scontrol(*words: str) -> None:
    if words[0] == "show":
        print("MaxArraySize            = 1001")
    if words[0] in ("requeue", "release"):  # a job requeues itself, and leaves then
        content = json.loads((_places() / f"{words[1]}.json").read_text())
        _start(words[1], content["script"])


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "squeue": squeue, "scancel": scancel, "scontrol": scontrol}[sys.argv[1]](
        *sys.argv[2:]
    )
