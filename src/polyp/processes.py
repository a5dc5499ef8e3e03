"""A run on several devices: each has a process, and the first one leads.

Lightning starts the others by the same command with LOCAL_RANK in the environment. They only train; the folder, what is
said and everything after training are the leader's.
"""

import logging
import os
import signal
import threading
import time
from pathlib import Path

from polyp import runs
from polyp.errors import InputError


def assisting() -> bool:
    """Whether this process was started by the one that leads the run."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def assist(folder: Path) -> None:
    """Take part in the training of the run that another process leads, and end when that one does.

    Args:
        folder: the run's; the leader has written its configuration.

    Raises:
        InputError: nobody leads, or this process alone met what is wrong.
    """
    logging.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the leader decides
    leader = os.getppid()
    if not runs.is_claimed(folder):
        raise InputError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']}, but no process leads a run in {folder}: start python train.py "
            "trainer=ddp once, it starts the others"
        )
    threading.Thread(target=_end_with, args=(leader,), daemon=True).start()

    from polyp import checkpoints, experiment  # imports torch

    try:
        last = checkpoints.to_continue(folder)
        experiment.fit(*experiment.build(runs.read_config(folder), folder, last), last)
    except SystemExit:
        return  # stopped together; a code other than 0 would make Lightning kill the leader while it is saying so
    except Exception:
        time.sleep(5)  # where the leader failed, it has said why and this process ends with it here
        raise


def _end_with(leader: int) -> None:
    while os.getppid() == leader:
        time.sleep(0.5)
    os._exit(1)  # not sys.exit: the main thread may wait for the leader for half an hour
