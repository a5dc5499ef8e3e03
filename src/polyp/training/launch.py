"""The processes of a run on several devices, and who has started them.

Rank 0 leads: the folder, the output and everything after training are its own, the others only train. There
are two ways to start them:

- Lightning: `python train.py trainer=ddp` starts the other processes of one machine, with LOCAL_RANK in the
  environment and the folder on the command line.
- torchrun or Slurm's srun: all processes, of one or several machines, are started by the same command. The
  leader tells the others the folder through a store of torch.distributed, at the port after MASTER_PORT.
"""

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from polyp.errors import InputError, override_text

if TYPE_CHECKING:
    from pytorch_lightning.plugins.environments import ClusterEnvironment
    from torch.distributed import TCPStore

CONNECT_TIMEOUT = timedelta(minutes=5)
"""How long a worker waits for the leader to start."""

PREPARE_TIMEOUT = timedelta(days=1)
"""How long a worker waits for the leader to prepare the data, downloads included."""

_store: "TCPStore | None" = None  # of the leader, which ends with its process


def launcher() -> str | None:
    """torchrun or srun if it has started the processes of this run; else None."""
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "torchrun"
    # not SLURM_NTASKS, which a batch script has too: there, train.py without srun is one process
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "srun"
    return None


def is_worker() -> bool:
    """Whether another process leads the run."""
    variable = {"torchrun": "RANK", "srun": "SLURM_PROCID", None: "LOCAL_RANK"}[launcher()]
    return os.environ.get(variable, "0") != "0"


def count_processes() -> tuple[int, int]:
    """The processes that the launcher has started on each machine, and the machines.

    Raises:
        SystemExit: the machines have different numbers of processes.
    """
    if launcher() == "torchrun":
        processes, local = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        nodes = processes // local
    else:
        processes, nodes = (int(os.environ[f"SLURM_STEP_NUM_{name}"]) for name in ("TASKS", "NODES"))
        local = processes // nodes
    if local * nodes != processes:
        problem = f"{launcher()}: all machines of a run need the same number of processes"
        sys.exit(None if is_worker() else problem)
    return local, nodes


def device_overrides() -> list[str]:
    """Overrides that set the devices of each machine, and the machines, to what the launcher has started."""
    local, nodes = count_processes()
    return [f"trainer.devices={local}", *([f"++trainer.num_nodes={nodes}"] if nodes > 1 else [])]


def cluster_environment() -> "ClusterEnvironment":
    """Lightning's description of the processes."""
    from pytorch_lightning.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    name = launcher()
    if name is None:
        return LightningEnvironment()
    if name == "torchrun":
        return TorchElasticEnvironment()
    # Slurm sets it for --ntasks-per-node only, and Lightning refuses --ntasks without it.
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(count_processes()[0]))
    return SLURMEnvironment(auto_requeue=False)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the Trainer's settings against the launcher.

    Args:
        settings: `trainer` of the configuration.

    Raises:
        InputError: they do not fit.
    """
    nodes, name = settings.get("num_nodes") or 1, launcher()
    if name is not None and settings.get("strategy", "auto") == "auto":
        raise InputError(f"{name} has started several processes of this run: add trainer=ddp")
    if name is None and nodes != 1:
        raise InputError(
            f"trainer.num_nodes={nodes}: start a run on several machines with torchrun or srun, which set it"
        )


def join_run() -> None:
    """Prepare the command line of a process of torchrun or srun; does nothing for others.

    The leader opens the store. A worker waits until the leader has opened the run, and takes its folder.

    Raises:
        SystemExit: the command is a sweep; the leader has ended without a run, or cannot be found.
    """
    if (name := launcher()) is None:
        return
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit(None if is_worker() else f"{name} starts one run: start a sweep, -m, without {name}")
    if is_worker():  # else torch reports with a stack trace that the leader has ended
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
        sys.argv += device_overrides()
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
    """Let the workers of a launcher begin.

    Args:
        folder: the run's, whose configuration is written.
    """
    if _store is not None:
        _store.set("folder", folder)
