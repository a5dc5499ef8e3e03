"""A run on several devices: each has a process, and the first one leads.

Lightning starts the others by the same command with LOCAL_RANK in the environment. They only train; the folder, what is
said and everything after training are the leader's.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from polyp import runs
from polyp.errors import InputError

STOPS = (signal.SIGTERM, signal.SIGINT)
"""What stops a run: a cluster or the system, and Ctrl-C."""


@contextmanager
def exit_on_signals(folder: Path) -> Iterator[None]:
    """Leave with 143 on SIGTERM and with 130 on Ctrl-C, at whatever moment; while training, see `LastCheckpoint`.

    Args:
        folder: of the run, for the line that says how to continue it.

    Raises:
        SystemExit: a signal came, even if a library has caught what its handler raised.
    """
    received: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        if not received:
            state = "finished" if runs.finished(folder) else f"to continue: python train.py {runs.resume_hint(folder)}"
            has_begun = (folder / runs.CONFIG).exists()
            print(f"\nStopped{f'; {state}' if has_begun else ''}", flush=True)
        received.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # the only one that may have handlers
        yield
        return
    former = {number: signal.signal(number, leave) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if received:
            raise SystemExit(128 + received[0])


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
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch warns with a stack trace when the leader leaves
    for number in STOPS:  # which may reach all processes: the leader decides
        signal.signal(number, signal.SIG_IGN)
    leader = os.getppid()
    if not runs.is_claimed(folder):
        raise InputError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']}, but no process leads a run in {folder}: start python train.py "
            "trainer=ddp once, it starts the others"
        )
    threading.Thread(target=_end_with, args=(leader,), daemon=True).start()

    from polyp import checkpoints, experiment  # imports torch

    try:
        config = runs.read_config(folder)
        last = checkpoints.to_continue(folder, config["trainer"]["max_epochs"])
        experiment.fit(*experiment.build(config, folder, last), last)
    except SystemExit:
        return  # stopped together; a code other than 0 would make Lightning kill the leader while it is saying so
    except Exception:
        time.sleep(5)  # where the leader failed, it has said why and this process ends with it here
        raise


def _end_with(leader: int) -> None:
    while os.getppid() == leader:
        time.sleep(0.5)
    os._exit(1)  # not sys.exit: the main thread may wait for the leader for half an hour
