"""Signals that stop a run: a cluster's or the system's SIGTERM, and Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from polyp.errors import train_command
from polyp.runs.folder import RunFolder

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def handle_signals(
    handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]],
) -> Iterator[None]:
    """Call a handler when its signal comes, until the end of the block.

    Outside the main thread, the only one that may have handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def exit_on_signals(folder: RunFolder) -> Iterator[None]:
    """Exit with 143 on SIGTERM and with 130 on Ctrl-C at any moment, and print how to continue the run.

    During training `LastCheckpoint` handles the signals.

    Raises:
        SystemExit: a signal came, even if a library has caught what its handler raised.
    """
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not signals:
            command = f"to continue: {train_command()} {folder.resume_override}"
            state = "finished" if folder.is_finished else command
            print(f"\nStopped{f'; {state}' if folder.is_run else ''}", flush=True)
        signals.append(number)
        raise SystemExit(128 + number)

    try:
        with handle_signals(dict.fromkeys(STOP_SIGNALS, stop)):
            yield
    finally:
        if signals:
            raise SystemExit(128 + signals[0])
