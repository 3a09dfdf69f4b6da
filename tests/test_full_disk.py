"""A full disk: one line that names the file; what was there stays, and the command goes on later."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from mutations.kills import COMMANDS, Killed, difference, left_in, run

from dassl.engine.trainer_base import TrainerBase
from prompted_clip.files import atomic_open

resource = pytest.importorskip("resource", reason="this system has no limit of a file's size")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def limited(command: str, most_bytes: int) -> Any:
    """The command where no file may be larger, as on a full disk: a write fails with EFBIG."""

    def start(folder: Path) -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        return COMMANDS[command](folder)

    return start


@pytest.mark.parametrize(
    ("command", "most_bytes", "file"),
    [
        ("train", 20_000, "model-best.pth.tar"),
        ("test", 15_000, "result_test.json"),
        ("report", 1_100, "tables.csv"),  # which has 1,190 bytes; what is printed is below
    ],
)
def test_where_a_file_cannot_be_written_what_was_there_stays(command, most_bytes, file, tmp_path):
    killed = Killed(command, tmp_path)
    killed.begin()
    before = left_in(killed.folder)
    code, _, printed = run(limited(command, most_bytes), killed.folder)
    assert code != 0
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert os.strerror(errno.EFBIG) in last
    assert last.endswith(f"{file}'")
    after = left_in(killed.folder)
    assert difference(before, {name: after.get(name) for name in before}) == ""
    assert not [name for name in after if name.endswith((".tmp", ".part"))]
    assert run(COMMANDS[command], killed.folder)[0] == 0
    assert difference(killed.left, left_in(killed.folder)) == ""


def test_a_writer_is_told_which_file(tmp_path):
    def fail_in() -> None:
        with atomic_open(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"a\.json"):
        fail_in()
    assert list(tmp_path.iterdir()) == []


def test_curves_that_cannot_be_written_are_one_line_and_the_training_goes_on(tmp_path, capsys):
    trainer = TrainerBase()
    trainer.init_writer(str(tmp_path))
    worker = next(each for each in threading.enumerate() if type(each).__module__.startswith("tensorboard."))

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    worker._record_writer.write = fail
    trainer.write_scalar("loss", 1.0, 0)
    worker.join(10)
    capsys.readouterr()
    trainer.write_scalar("loss", 1.0, 1)
    trainer.write_scalar("loss", 1.0, 2)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "TensorBoard cannot be used: curves are not logged ([Errno 28] No space left on device)"
    ]
    assert printed.err == ""
    trainer.close_writer()
