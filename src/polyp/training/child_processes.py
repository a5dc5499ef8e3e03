"""Function calls in child processes: one may abort, and its memory and its GPU are free when it has ended.

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

from polyp.training.signals import STOP_SIGNALS, handle_signals

Call = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""A name for the process, a function and its arguments: importable by name, and what can be pickled."""


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
        names = {number.value: number.name for number in signal.Signals}
        cause = ", perhaps because the memory was full" if -self.code == signal.SIGKILL else ""
        return f"killed by {names.get(-self.code, f'signal {-self.code}')}{cause}"


def call(function: Callable[..., Any], *arguments: Any, name: str) -> Outcome:
    """Call a function in a child process, and wait for its end; see `call_each`."""
    return dict(call_each([(name, function, arguments)]))[0]


def call_each(calls: Iterable[Call], n_jobs: int = 1) -> Iterator[tuple[int, Outcome]]:
    """Make each call in a child process; to be used from the main thread.

    The processes have this one's terminal, working directory and environment. Each is in its own process
    group: Ctrl-C and SIGTERM are forwarded to them, and Ctrl-Z stops them with this process. All that a
    process has started is killed when it ends, and it is killed when this process is.

    Args:
        calls: taken one by one, when a process can be started. A result is at most a few kilobytes large.
        n_jobs: how many processes there are at once.

    Yields:
        The index of a call in `calls` and how it has ended, as soon as it has.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came, with 128 + the signal's number, after all processes have ended.
    """
    _start_server()
    running: dict[int, tuple[BaseProcess, Connection]] = {}
    signals: list[int] = []

    def send_to_all(number: int) -> None:
        for process, _ in running.values():
            _send_signal(process, number)

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if not running:  # one may be waiting for the server's imports: it will end, since its caller has
            raise SystemExit(128 + number)
        send_to_all(number)

    def pause(number: int, frame: FrameType | None) -> None:
        send_to_all(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # until `fg`
        send_to_all(signal.SIGCONT)

    queue = enumerate(calls)
    with handle_signals({**dict.fromkeys(STOP_SIGNALS, forward), signal.SIGTSTP: pause}):
        try:
            while True:
                while len(running) < n_jobs and not signals and (item := next(queue, None)):
                    index, (name, function, arguments) = item
                    running[index] = _start_process(name, function, arguments)
                    if signals:  # one came while the process was started
                        _send_signal(running[index][0], signals[-1])
                if not running:
                    break
                sentinels = wait([process.sentinel for process, _ in running.values()])
                for index, (process, result) in list(running.items()):
                    if process.sentinel in sentinels:
                        del running[index]
                        process.join()
                        _send_signal(process, signal.SIGKILL, os.killpg)  # its loaders' workers
                        try:
                            value = result.recv() if result.poll() else None
                        except EOFError:
                            value = None
                        yield index, Outcome(process.exitcode or 0, value)
        finally:
            send_to_all(signal.SIGKILL)  # none is running, unless an exception was raised here
    if signals:
        raise SystemExit(128 + signals[-1])


def _start_server() -> None:
    """Begin the imports of the processes to come, in the background."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["polyp.training.preloaded"])
    # Ctrl-C reaches the server too: blocked, it does not interrupt the imports. The calls unblock it. The
    # resource tracker is started first, since that would unblock it as well.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_process(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[BaseProcess, Connection]:
    """Start a process; returns it and the connection that its result comes from."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    streams = [Connection(os.dup(number), readable=False) for number in (1, 2)]
    process = context.Process(
        target=_run_call, args=(function, arguments, sender, streams, dict(os.environ)), name=name
    )
    process.start()
    for connection in (sender, *streams):
        connection.close()
    return process, receiver


def _send_signal(process: BaseProcess, number: int, kill: Callable[[int, int], None] = os.kill) -> None:
    assert process.pid is not None  # it was started
    with suppress(ProcessLookupError):
        kill(process.pid, number)


def _run_call(
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
    # A loader's workers are children of this process, not of the server.
    multiprocessing.set_start_method(None, force=True)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        result.send(function(*arguments))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os.killpg(0, signal.SIGKILL)
