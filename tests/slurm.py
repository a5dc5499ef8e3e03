"""A real Slurm of one or several nodes, on this machine and for as long as the tests last."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
MailProg=/bin/true
{nodes}
PartitionName=tests Nodes=ALL Default=YES
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=1000"


def missing() -> str | None:
    """What keeps a cluster from being started here."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    programs = [
        name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=path) is None
    ]
    if programs:
        return f"{', '.join(programs)} not installed: apt-get install slurm-wlm munge"
    return "only root can start Slurm" if os.geteuid() else None


@contextmanager
def cluster(folder: Path, nodes: int = 1) -> Iterator[Path]:
    """Start a controller and nodes that keep everything in `folder`; gives what SLURM_CONF should name."""
    names = [f"node{number}" for number in range(nodes)]
    for name in ("state", *(f"spool-{node}" for node in names)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    controller, *ports = free_ports(1 + nodes)
    lines = [
        NODE.format(name=name, host=host, port=port, cpus=2 // nodes)
        for name, port in zip(names, ports, strict=True)
    ]
    conf.write_text(CONFIGURATION.format(host=host, port=controller, folder=folder, nodes="\n".join(lines)))
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    commands = [munged, ["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", name] for name in names)]
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            stack.enter_context(_daemon(command, folder / f"{command[0]}{number}.said", environment))
        _wait_for_nodes(environment, folder, nodes)
        yield conf
        subprocess.run(["scancel", "--user=root"], env=environment, check=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _daemon(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with (
        open(log, "w") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


def _wait_for_nodes(environment: dict[str, str], folder: Path, nodes: int) -> None:
    deadline = time.time() + 30
    while time.time() < deadline:
        state = subprocess.run(
            ["sinfo", "--noheader", "--format=%T %D"], env=environment, capture_output=True, text=True
        )
        if state.stdout.strip() == f"idle {nodes}":
            return
        time.sleep(0.2)
    raise RuntimeError(
        "\n".join([state.stdout, state.stderr, *(log.read_text() for log in folder.glob("*.log"))])
    )
