"""A function call in a process of its own: it may abort, and its memory and its GPU are free when it has ended.

The processes are forked from a server that has imported what training needs, so that each starts in a fraction of a
second and the caller needs no torch. The server is started by the first call and ends with the caller.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NamedTuple

PRELOADED = ("polyp.training.stages", "polyp.training.console", "polyp.runs.model")
"""What a training run imports."""

FORWARDED = (signal.SIGINT, signal.SIGTERM)


class Outcome(NamedTuple):
    """How a call has ended.

    Attributes:
        code: 0, the exit code, or a signal's number with a minus.
        value: what the function returned; None if it did not.
    """

    code: int
    value: Any

    def __str__(self) -> str:
        """For instance "killed by SIGSEGV"."""
        if self.code >= 0:
            return f"ended with exit code {self.code}"
        names = {each.value: each.name for each in signal.Signals}
        memory = ", perhaps because the memory was full" if -self.code == signal.SIGKILL else ""
        return f"killed by {names.get(-self.code, f'signal {-self.code}')}{memory}"


def start_server() -> None:
    """Begin the imports of the processes to come, in the background."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
    # Ctrl-C reaches the server too: blocked, it does not break the imports. The calls unblock it. The resource tracker
    # comes first, since starting it would unblock it as well.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED[:1])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def call(function: Callable[..., Any], *arguments: Any, name: str) -> Outcome:
    """Call a function in a process of its own, and wait for its end; to be called from the main thread.

    The process has this one's terminal, working directory and environment. It is in a process group of its own:
    Ctrl-C and SIGTERM are forwarded to it, and Ctrl-Z stops both. All that it has started is killed when it ends, and
    it is killed when this process is.

    Args:
        function, arguments: importable by name, and what can be pickled; the result is at most a few kilobytes large.
        name: of the process.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came, with 128 + the signal's number, after the process has ended.
    """
    start_server()
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    streams = [Connection(os.dup(number), readable=False) for number in (1, 2)]
    process = context.Process(target=_serve, args=(function, arguments, sender, streams, dict(os.environ)), name=name)
    stop: int | None = None

    def send(number: int) -> None:
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = number
        if process.pid is None:  # the server is still importing; the process will find that its caller has gone
            raise SystemExit(128 + number)
        send(number)

    def pause(number: int, frame: FrameType | None) -> None:
        send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # until `fg`
        send(signal.SIGCONT)

    handlers = dict.fromkeys(FORWARDED, forward) | {signal.SIGTSTP: pause}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        process.start()
        for connection in (sender, *streams):
            connection.close()
        process.join()
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its loaders' workers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop is not None:
        raise SystemExit(128 + stop)
    try:
        value = receiver.recv() if receiver.poll() else None
    except EOFError:
        value = None
    return Outcome(process.exitcode or 0, value)


def _serve(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    result: Connection,
    streams: list[Connection],
    environment: dict[str, str],
) -> None:
    os.setpgid(0, 0)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.fileno(), number)
        stream.close()
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # a loader's workers are this process's, not the server's
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        result.send(function(*arguments))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _end_with_the_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os.killpg(0, signal.SIGKILL)
