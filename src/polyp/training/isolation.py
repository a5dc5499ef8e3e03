"""Function calls in processes of their own: one may abort, and its memory and its GPU are free when it has
ended.

The processes are forked from a server that has imported what training needs, so that each starts in a
fraction of a second and the caller needs no torch. The server is started by the first call and ends with the
caller.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
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
    # Ctrl-C reaches the server too: blocked, it does not interrupt the imports. The calls unblock it. The
    # resource tracker is started first, since that would unblock it as well.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED[:1])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


Call = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""A name for the process, a function and its arguments: importable by name, and what can be pickled."""


def call(function: Callable[..., Any], *arguments: Any, name: str) -> Outcome:
    """Call a function in a process of its own, and wait for its end; see `call_each`."""
    return dict(call_each([(name, function, arguments)]))[0]


def call_each(calls: Iterable[Call], n_jobs: int = 1) -> Iterator[tuple[int, Outcome]]:
    """Make each call in a process of its own; to be used from the main thread.

    The processes have this one's terminal, working directory and environment. Each is in a process group of
    its own: Ctrl-C and SIGTERM are forwarded to them, and Ctrl-Z stops them with this process. All that a
    process has started is killed when it ends, and it is killed when this process is.

    Args:
        calls: taken one by one, when a process can be started. A result is at most a few kilobytes large.
        n_jobs: how many processes there are at once.

    Yields:
        The place of a call in `calls` and how it has ended, as soon as it has.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came, with 128 + the signal's number, after all processes have ended.
    """
    start_server()
    running: dict[int, tuple[BaseProcess, Connection]] = {}
    received: list[int] = []

    def send(number: int) -> None:
        for process, _ in running.values():
            _send(process, number)

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not running:  # one may be waiting for the server's imports: it will end, since its caller has
            raise SystemExit(128 + number)
        send(number)

    def pause(number: int, frame: FrameType | None) -> None:
        send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # until `fg`
        send(signal.SIGCONT)

    handlers = dict.fromkeys(FORWARDED, forward) | {signal.SIGTSTP: pause}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    queue = enumerate(calls)
    try:
        while True:
            while len(running) < n_jobs and not received and (following := next(queue, None)):
                process, result = running[following[0]] = _start(*following[1])
                if received:  # while it was started
                    _send(process, received[-1])
            if not running:
                break
            ended = wait([process.sentinel for process, _ in running.values()])
            for place in [place for place, (process, _) in running.items() if process.sentinel in ended]:
                process, result = running.pop(place)
                process.join()
                _send(process, signal.SIGKILL, os.killpg)  # its loaders' workers
                try:
                    value = result.recv() if result.poll() else None
                except EOFError:
                    value = None
                yield place, Outcome(process.exitcode or 0, value)
    finally:
        send(signal.SIGKILL)  # none is left, unless an exception was raised here
        for number, handler in former.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[-1])


def _start(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    streams = [Connection(os.dup(number), readable=False) for number in (1, 2)]
    process = context.Process(
        target=_serve, args=(function, arguments, sender, streams, dict(os.environ)), name=name
    )
    process.start()
    for connection in (sender, *streams):
        connection.close()
    return process, receiver


def _send(process: BaseProcess, number: int, kill: Callable[[int, int], None] = os.kill) -> None:
    assert process.pid is not None  # it was started
    with suppress(ProcessLookupError):
        kill(process.pid, number)


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
    multiprocessing.set_start_method(
        None, force=True
    )  # a loader's workers are this process's, not the server's
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
