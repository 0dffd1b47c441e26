"""A Slurm of this machine's own: one node with one slot, started and stopped by whoever needs one.

    SLURM_CONF is set to what `python tests/exp/slurm_cluster.py <an empty folder>` prints, until Ctrl-C or SIGTERM.

Debian's `slurm-wlm` as it is, all of its files in one folder, no accounting: what a small cluster has.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
_CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=1000000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What this machine lacks for a Slurm; None if nothing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no Slurm here: {', '.join(missing)} not found (Debian: apt-get install slurm-wlm)"
    return None if os.geteuid() == 0 else "Slurm's daemons are started by root alone"


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run the daemons; yields the environment in which `sbatch` and the others reach them.

    Raises:
        RuntimeError: the node does not come up; with the end of the daemons' logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spool").mkdir()
    (folder / "state").mkdir()
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    conf.write_text(_CONF.format(host=socket.gethostname(), folder=folder, ports=_free_ports(2)))
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(conf)}
    munged = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "pid-file")]
    munged += [f"--{name}={folder}/munge.{name}" for name in ("log-file", "seed-file")]
    with ExitStack() as daemons:
        for command in (
            ["munged", "--foreground", "--force", *munged],
            ["slurmctld", "-D", "-i", "-f", str(conf)],
            ["slurmd", "-D", "-N", "node", "-f", str(conf)],
        ):
            daemons.enter_context(_running(command, environment, folder / f"{command[0]}.out"))
        _wait_for_node(environment, folder)
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for free in bound:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in bound]


@contextmanager
def _running(command: list[str], environment: dict[str, str], out: Path) -> Iterator[None]:
    with out.open("wb") as file:
        daemon = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _wait_for_node(environment: dict[str, str], folder: Path) -> None:
    state = ""
    for _ in range(120):
        done = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True)
        state = done.stdout.strip()
        if state == "idle":
            return
        time.sleep(0.5)
    said = "\n".join(log.read_text(errors="replace")[-1500:] for log in sorted(folder.glob("*.[lo]*[gt]")))
    raise RuntimeError(f"Slurm's node is not idle but {state!r}\n{said}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with its daemons
    with slurm_cluster(Path(sys.argv[1]).absolute()) as environment:
        print(environment["SLURM_CONF"], flush=True)
        signal.pause()
