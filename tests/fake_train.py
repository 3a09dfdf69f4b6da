"""Stands in for `python train.py` in tests of sweeps: a run that does at once what its folder's name says.

Called as `fake_train.py train.py --output-dir FOLDER ...`. Each start adds a line to FOLDER/starts.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

folder = Path(sys.argv[sys.argv.index("--output-dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
try:
    lock = FileLock(folder / ".lock")
    lock.acquire(timeout=0)
except Timeout:
    sys.exit(75)
with open(folder / "starts", "a") as file:
    file.write(f"{os.getpid()}\n")
starts = len((folder / "starts").read_text().split())
name = folder.parent.name
if "slow" in name:
    try:
        with open(folder / "log.txt", "a") as file:
            file.write(
                "epoch [1/5] batch [40/96] time 0.1 (0.1) data 0.0 (0.0) loss 1 (1) lr 1.0e-03 eta 0:00:12\n"
            )
        time.sleep(600)
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        sys.exit(130)
if "wrong" in name:
    print("train.py: DATASET.ROOT is wrong; give another.", file=sys.stderr)
    sys.exit(2)
if "crash" in name or ("once" in name and starts == 1):
    print("Traceback (most recent call last):\n  ...\nRuntimeError: out of memory\n", file=sys.stderr)
    sys.exit(1)
if "killed" in name:
    print(
        "UserWarning: This DataLoader will create 8 worker processes in total.", file=sys.stderr, flush=True
    )
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.3 if "short" in name else 0.0)
result = {"format": 1, "results": {"accuracy": 80.0}, "peak_memory_bytes": {"device": None}}
(folder / "result.json").write_text(json.dumps(result))
