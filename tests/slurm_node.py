"""A real Slurm of one node, for tests: started without systemd, in a folder of its own, and stopped again.

It needs root, and `munged`, `slurmctld` and `slurmd` (Debian, Ubuntu: `apt-get install slurm-wlm munge`).
Ports are chosen free and nothing outside the folder is written: an installed Slurm beside it is left alone.
There is no accounting; `sacct` fails, as on many small clusters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
START_SECONDS = 30.0
STOP_SECONDS = 10.0

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
# CPUs and memory are as said below, whatever the machine has.
SlurmdParameters=config_overrides
AuthType=auth/munge
# A requeued job starts again after cred_expire seconds; the default is 120, the least 5.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0
ReturnToService=2
KillWait=1
InactiveLimit=0
MinJobAge={remembered}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=300 State=UP OverSubscribe=NO DefMemPerCPU=100
"""


def why_not() -> str:
    """What is missing for a Slurm here; empty if nothing."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"no Slurm here: {', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "a Slurm of one's own needs root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextlib.contextmanager
def slurm_node(folder: Path, cpus: int = 8, memory: int = 16000, remembered: int = 300) -> Iterator[Path]:
    """Runs a Slurm while the context is open; `SLURM_CONF` is set in this process.

    Args:
        folder: where everything of it lies; short, because a socket's path has at most 107 characters.
        cpus: CPUs that the node claims to have.
        memory: MB that the node claims to have.
        remembered: seconds that `squeue` still tells of a job after its end; 2 or more.

    Yields:
        The file of its configuration.

    Raises:
        RuntimeError: a daemon ended, or the node did not become idle; with the end of the logs.
    """
    daemons: list[subprocess.Popen[bytes]] = []
    before = os.environ.get("SLURM_CONF")
    configuration = _written(folder, cpus, memory, remembered)
    os.environ["SLURM_CONF"] = str(configuration)
    try:
        munged = [_program("munged"), "--foreground", "--force", f"--key-file={folder}/munge.key"]
        munged += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"]
        munged += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
        daemons.append(_started(munged, folder))
        _wait(lambda: (folder / "munge.socket").exists(), daemons, folder)
        daemons.append(_started([_program("slurmctld"), "-D", "-f", str(configuration)], folder))
        daemons.append(_started([_program("slurmd"), "-D", "-f", str(configuration)], folder))
        _wait(lambda: _answer("sinfo", "--noheader", "--format=%T") == "idle", daemons, folder)
        yield configuration
    finally:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _answer("scancel", "--signal=KILL", "--full", "--partition=test")
            _answer("scancel", "--partition=test")
        for daemon in reversed(daemons):
            _stopped(daemon)
        _kill_what_is_left(configuration)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def _written(folder: Path, cpus: int, memory: int, remembered: int) -> Path:
    """The folder with its key and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (first, second)]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            controller_port=ports[0],
            node_port=ports[1],
            folder=folder,
            cpus=cpus,
            memory=memory,
            remembered=remembered,
        )
    )
    return configuration


def _started(command: list[str | None], folder: Path) -> subprocess.Popen[bytes]:
    assert command[0] is not None, "why_not() is asked first"
    name = Path(command[0]).name
    with (folder / f"{name}.out").open("wb") as out:
        # A session of its own: Ctrl-C in the tests stops it by the context's end, in order.
        return subprocess.Popen(
            [str(part) for part in command],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _answer(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=STOP_SECONDS, check=False)
    return done.stdout.strip()


def _wait(ready, daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        dead = [Path(str(daemon.args[0])).name for daemon in daemons if daemon.poll() is not None]  # type: ignore
        if dead or time.monotonic() > end:
            logs = [f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*.[lo][ou]*"))]
            raise RuntimeError("\n".join([f"Slurm did not start ({', '.join(dead) or 'too slow'}):", *logs]))
        time.sleep(0.1)


def _stopped(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _kill_what_is_left(configuration: Path) -> None:
    """Kills the jobs and their shepherds: what has this configuration in its environment or command."""
    mark = os.fsencode(configuration)
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if int(place.name) == os.getpid():
                continue
            if mark in (place / "environ").read_bytes() or mark in (place / "cmdline").read_bytes():
                os.kill(int(place.name), signal.SIGKILL)
