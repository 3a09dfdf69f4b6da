"""How a command ends: one line and an exit code for what is no bug, a traceback for what is one."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from torch._utils import ExceptionWrapper

from dassl.utils.safe_load import safe_load
from prompted_clip.console import MOST, explain, run_command
from prompted_clip.errors import DownloadError, MissingFileError, NotFiniteError, UserError
from prompted_clip.weights import read_state_dict


def ended(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    def run() -> None:
        raise error

    code = run_command("command", run)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("error", [UserError, MissingFileError, NotFiniteError])
def test_what_the_user_has_to_mend_is_one_line(error, capsys):
    assert ended(error("OPTIM.LR is x"), capsys) == (2, "command: OPTIM.LR is x\n")


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "ESTALE", "EMFILE", "EDQUOT", "ENFILE"])
def test_what_may_pass_has_the_exit_code_of_another_attempt(name, capsys):
    number = getattr(errno, name)
    code, line = ended(OSError(number, os.strerror(number), "/data/file"), capsys)
    assert code == 1
    assert "/data/file" in line


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 1), (errno.EACCES, 2)])
def test_an_error_of_a_worker_is_one_line(number, code, capsys):
    """A DataLoader raises it again without its number, and with the worker's traceback as its message."""
    try:
        raise OSError(number, os.strerror(number), "/data/a file")
    except OSError:
        error = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(OSError, match="Caught") as raised:
        error.reraise()
    line = f"command: [Errno {number}] {os.strerror(number)}: '/data/a file'\n"
    assert ended(raised.value, capsys) == (code, line)


@pytest.mark.parametrize("read", [safe_load, read_state_dict])
def test_a_disk_that_fails_is_no_damaged_file(read, tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1)}, path)

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match="Errno") as raised:
        read(str(path))
    assert explain(raised.value) == (1, str(raised.value))


def test_a_server_that_is_away_may_be_back(capsys):
    assert ended(DownloadError("no answer"), capsys) == (1, "command: no answer\n")


def test_a_missing_permission_is_the_user_s(capsys):
    code, line = ended(PermissionError(errno.EACCES, "Permission denied", "/data/file"), capsys)
    assert code == 2
    assert "/data/file" in line


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("x: not enough memory: y")],
)
def test_out_of_memory_names_what_takes_less(error, capsys):
    code, line = ended(error, capsys)
    assert code == 1
    assert "BATCH_SIZE" in line


def test_a_killed_worker_is_said(capsys):
    code, line = ended(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), capsys)
    assert code == 1
    assert "DATALOADER.NUM_WORKERS" in line


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError, RuntimeError, AttributeError, OSError])
def test_a_bug_keeps_its_traceback(error, capsys):
    with pytest.raises(error):
        ended(error("a bug"), capsys)


def test_a_message_stays_short_and_one_line(capsys):
    _, line = ended(UserError("a" * 10_000 + "\n\x1b[2J"), capsys)
    assert len(line) < MOST + 100
    assert line.count("\n") == 1
    assert "\x1b" not in line
