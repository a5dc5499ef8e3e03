"""The start of `polyp app`."""

import errno
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from polyp.commands.app.options import Options
from polyp.commands.options import find_models
from polyp.errors import InputError, describe_error, require
from polyp.runs.folder import RunFolder

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def run(options: Options) -> None:
    """Serve until Ctrl-C; raises InputError if an option or a run cannot be used, or the port is in use."""
    require("app", "starlette", "uvicorn")
    user, _, password = (options.auth or "").partition(":")
    if options.auth is not None and not (user and password):
        raise InputError("--auth must be user:password, such as --auth clinic:S3cret")
    parse_size(options.max_upload)  # before models are loaded
    if bool(options.models) == options.demo:
        raise InputError("give a RUN, or --demo without one")
    find_models(options.models, options.root)
    with listen(options.host, options.port) as listening:
        # So that the temporary folder is removed at SIGTERM, too.
        previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            models = name_models([str(find_demo_run())] if options.demo else options.models)
            serve(listening, models, (user, password) if user else None, options)
        finally:
            signal.signal(signal.SIGTERM, previous)


def serve(
    listening: socket.socket, models: dict[str, str], auth: tuple[str, str] | None, options: Options
) -> None:
    """Load models, which are given by name, print the page's address, and serve."""
    from polyp.commands.app.connections import make_server
    from polyp.commands.app.gallery import load_gallery
    from polyp.commands.app.inference_queue import InferenceQueue
    from polyp.commands.app.server import LOCAL_HOSTS, make_app
    from polyp.inference.predictor import COMPARED
    from polyp.runs.model import find_sources

    print(f"polyp app: loading {', '.join(models)}", flush=True)
    queue = InferenceQueue(models, options.compute, options.device)
    gallery = load_gallery(find_sources(list(models.values())), options.root)
    host, port = listening.getsockname()[:2]
    local = host in LOCAL_HOSTS
    images = f"{len(gallery.images)} test images" if gallery.images else f"no test images ({gallery.note})"
    print(f"  {queue.find_predictor(None)[1].backend}; {images}")
    for name, predictor in queue.predictors.items():
        if not predictor.is_exact:
            samples = [gallery.read(key).pixels for key in list(gallery.images)[:COMPARED]]
            print(f"  {name}: {queue.submit(partial(predictor.describe_deviation, samples)).result()}")
    if not local and auth is None:
        text = "everybody who reaches this machine can use the app: --auth user:password restricts it"
        print(f"warning: {text}")
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    elif ":" in host:
        host = f"[{host}]"
    print(f"  http://{host}:{port}   Ctrl-C ends it", flush=True)
    try:
        with TemporaryDirectory(prefix="polyp-app-", ignore_cleanup_errors=True) as folder:
            app = make_app(queue, gallery, auth, parse_size(options.max_upload), local, Path(folder))
            make_server(app).run(sockets=[listening])
        raise KeyboardInterrupt  # this has ended the server, but asyncio may have caught it
    except OSError as error:
        reason = describe_error(error)
        raise InputError(f"the app cannot run: {reason}; TMPDIR=FOLDER names another") from error
    finally:
        queue.close()


def parse_size(text: str) -> int:
    """The bytes of a size such as 20MB; raises InputError if the text is no size."""
    try:
        size = int(float(text[:-2]) * UNITS[text[-2:].upper()])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise InputError(f"--max-upload {text} must be a number with KB, MB or GB, such as 20MB")
    return size


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens on a port.

    Raises:
        InputError: the port is in use, or the host is not an address of this machine.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port} must be between 0 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as stack:
            # With the protocol, which `socket.create_server` omits: asyncio sets TCP_NODELAY by it.
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
            stack.pop_all()
            return listening
    except (OSError, UnicodeError) as error:
        message = f"--host {host} --port {port} cannot be used: {describe_error(error)}"
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            message = f"port {port} is in use: give another with --port, or --port 0 for any"
        raise InputError(message) from error


def name_models(models: Sequence[str]) -> dict[str, str]:
    """The models by the last parts of their paths, two of them or as many as make the names unique.

    Raises InputError if a model is given twice.
    """
    paths = [Path(model).expanduser().absolute() for model in models]
    if len(set(paths)) < len(paths):
        raise InputError("a RUN is given twice")
    length = next(n for n in range(2, 100) if len({path.parts[-n:] for path in paths}) == len(paths))
    return {"/".join(path.parts[-length:]): model for path, model in zip(paths, models, strict=True)}


def find_demo_run() -> Path:
    """The newest finished run below outputs/, or else a new one; raises InputError if its training fails."""
    runs = [RunFolder(file.parent) for file in Path("outputs").glob("**/metrics.json")]
    runs = [run for run in runs if run.best_checkpoint.is_file() and run.is_run]
    if runs:
        newest = max(runs, key=lambda run: run.metrics_file.stat().st_mtime)
        print(f"polyp app --demo: the newest run here is {newest}")
        return newest.path
    print("polyp app --demo: no run below outputs/ yet, training one takes about a minute")
    command = [sys.executable, "-m", "polyp.cli", "train", "experiment=quickstart"]
    if code := subprocess.run(command).returncode:
        raise InputError(f"--demo: polyp train experiment=quickstart ended with {code}: see above")
    return find_demo_run()
