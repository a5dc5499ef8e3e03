"""Signals, and what a process does that another one leads, see `launch`."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from polyp import terminal
from polyp.errors import InputError, train_command
from polyp.runs.folder import RunFolder, is_locked
from polyp.training import launch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The signals that stop a run: a cluster's or the system's, and Ctrl-C."""


@contextmanager
def exit_on_signals(folder: RunFolder) -> Iterator[None]:
    """Exit with 143 on SIGTERM and with 130 on Ctrl-C at any moment; while training, see `LastCheckpoint`.

    Args:
        folder: of the run, for the line that says how to continue it.

    Raises:
        SystemExit: a signal came, even if a library has caught what its handler raised.
    """
    received: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        if not received:
            command = f"to continue: {train_command()} {folder.resume_override}"
            state = "finished" if folder.is_finished else command
            print(f"\nStopped{f'; {state}' if folder.is_run else ''}", flush=True)
        received.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # the only one that may have handlers
        yield
        return
    former = {number: signal.signal(number, leave) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if received:
            raise SystemExit(128 + received[0])


@contextmanager
def follow_leader(folder: RunFolder) -> Iterator[None]:
    """Take part in the training of the run that another process leads, and end when that one does.

    Args:
        folder: the run's; the leader has written its configuration.

    Raises:
        InputError: no process leads, or this process alone met what is wrong.
    """
    logging.disable()
    terminal.LIVE.quiet = True
    # else torch warns with a stack trace when the leader ends
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for number in STOP_SIGNALS:  # which may reach all processes: the leader decides
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    if launch.launcher() is None and not is_locked(folder.path):
        raise InputError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']}, but no process leads a run in {folder}: start "
            f"{train_command()} trainer=ddp once, it starts the others"
        )
    if not folder.is_run:
        raise InputError(f"{folder} is not on this machine: all machines of a run need the same files")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        yield
    except SystemExit:
        # all stopped together; a code other than 0 would make Lightning kill the leader while it reports
        return
    except Exception:
        time.sleep(5)  # where the leader failed, it has reported why and ends this process
        raise


def _end_with(parent: int) -> None:
    """End this process when the one that has started it ends: the leader, or the launcher."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # not sys.exit: the main thread may wait for the leader for half an hour
