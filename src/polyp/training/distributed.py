"""The processes of a run on several devices, and who has started them.

Rank 0 leads: the folder, the output and everything after training are its own, the others only train. There
are two ways to start them:

- Lightning: `python train.py trainer=ddp` starts the other processes of one machine, with LOCAL_RANK in the
  environment and the folder on the command line.
- torchrun or Slurm's srun: all processes, of one or several machines, are started by the same command. The
  leader tells the others the folder through a store of torch.distributed, at the port after MASTER_PORT.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from polyp import terminal
from polyp.errors import InputError, override_text, train_command
from polyp.runs.folder import RunFolder, is_locked
from polyp.training.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from pytorch_lightning.plugins.environments import ClusterEnvironment
    from torch.distributed import TCPStore

CONNECT_TIMEOUT = timedelta(minutes=5)
"""How long a worker waits for the leader to start."""

PREPARE_TIMEOUT = timedelta(days=1)
"""How long a worker waits for the leader to prepare the data, downloads included."""

_store: "TCPStore | None" = None  # of the leader, which ends with its process


def find_launcher() -> str | None:
    """torchrun or srun, whichever has started the processes of this run; None for neither."""
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "torchrun"
    # not SLURM_NTASKS, which a batch script has too: there, train.py without srun is one process
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "srun"
    return None


def is_worker() -> bool:
    """Whether another process leads the run."""
    variable = {"torchrun": "RANK", "srun": "SLURM_PROCID", None: "LOCAL_RANK"}[find_launcher()]
    return os.environ.get(variable, "0") != "0"


def _count_processes() -> tuple[int, int]:
    """The number of processes that the launcher has started on each machine, and the number of machines."""
    if find_launcher() == "torchrun":
        total, local = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        nodes = total // local
    else:
        total, nodes = (int(os.environ[f"SLURM_STEP_NUM_{name}"]) for name in ("TASKS", "NODES"))
        local = total // nodes
    if local * nodes != total:
        problem = f"{find_launcher()}: all machines of a run need the same number of processes"
        sys.exit(None if is_worker() else problem)
    return local, nodes


def cluster_environment() -> "ClusterEnvironment":
    """Lightning's description of the processes."""
    from pytorch_lightning.plugins import environments

    launcher = find_launcher()
    if launcher is None:
        return environments.LightningEnvironment()
    if launcher == "torchrun":
        return environments.TorchElasticEnvironment()
    # Slurm sets it for --ntasks-per-node only, and Lightning refuses --ntasks without it.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(_count_processes()[0]))
    return environments.SLURMEnvironment(auto_requeue=False)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the Trainer's settings against the launcher.

    Raises:
        InputError: they do not fit.
    """
    nodes, launcher = settings.get("num_nodes") or 1, find_launcher()
    if launcher is not None and settings.get("strategy", "auto") == "auto":
        raise InputError(f"{launcher} has started several processes of this run: add trainer=ddp")
    if launcher is None and nodes != 1:
        raise InputError(
            f"trainer.num_nodes={nodes}: start a run on several machines with torchrun or srun, which set it"
        )


def join_run() -> None:
    """Prepare the command line of a process of torchrun or srun; does nothing in other processes.

    The leader opens the store. A worker waits until the leader has opened the run, and takes its folder.

    Raises:
        SystemExit: the command is a sweep; the leader has ended without a run, or cannot be found.
    """
    if (launcher := find_launcher()) is None:
        return
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit(None if is_worker() else f"{launcher} starts one run: start a sweep, -m, without {launcher}")
    if is_worker():  # without it torch reports the end of the leader with a stack trace
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import DistError, TCPStore

    cluster = cluster_environment()
    address, port = cluster.main_address, cluster.main_port + 1
    if not is_worker():
        global _store
        try:
            _store = TCPStore(address, port, is_master=True, wait_for_workers=False)
        except DistError:
            sys.exit(f"port {port} of {address} is not free: set MASTER_PORT to one less than a free port")
        devices, nodes = _count_processes()
        sys.argv += [f"trainer.devices={devices}", *([f"++trainer.num_nodes={nodes}"] if nodes > 1 else [])]
        return
    try:
        store = TCPStore(address, port, is_master=False, timeout=CONNECT_TIMEOUT)
    except DistError:
        sys.exit(f"no process leads a run at {address}:{port}: start all processes with the same command")
    try:
        store.set_timeout(PREPARE_TIMEOUT)
        folder = store.get("folder").decode()
    except DistError:
        sys.exit()  # the leader has ended, and said why
    sys.argv += [override_text("hydra.run.dir", folder), "hydra.output_subdir=null", "hydra.job.name=worker"]


def announce_run(folder: str) -> None:
    """Let the workers of a launcher begin with the run in a folder, whose configuration is written."""
    if _store is not None:
        _store.set("folder", folder)


@contextmanager
def follow_leader(folder: RunFolder) -> Iterator[None]:
    """Take part in the training of the run that another process leads, and end when that one does.

    Raises:
        InputError: no process leads, or the error is in this process alone.
    """
    logging.disable()
    terminal.LIVE.quiet = True
    # Without it torch reports the end of the leader with a stack trace.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for number in STOP_SIGNALS:  # which may reach all processes: the leader decides
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    if find_launcher() is None and not is_locked(folder.path):
        raise InputError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']}, but no process leads a run in {folder}: start "
            f"{train_command()} trainer=ddp once, it starts the others"
        )
    if not folder.is_run:
        raise InputError(f"{folder} is not on this machine: all machines of a run need the same files")
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    try:
        yield
    except SystemExit:
        # all stopped together; a code other than 0 would make Lightning kill the leader while it reports
        return
    except Exception:
        time.sleep(5)  # where the leader failed, it has reported why and ends this process
        raise


def _end_with_parent(parent: int) -> None:
    """End this process when its parent ends: the leader, or the launcher."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # not sys.exit: the main thread may wait for the leader for half an hour
