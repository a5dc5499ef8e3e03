"""`polyp app`: its options and its start."""

import errno
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from polyp.commands.app.options import Options
from polyp.commands.options import find_models
from polyp.errors import InputError, describe_error, require
from polyp.runs.folder import RunFolder

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}

OPEN_HOSTS = ("0.0.0.0", "::")


def run(options: Options) -> None:
    """Serve until Ctrl-C.

    Raises:
        InputError: an option or a run cannot be used, or the port is taken.
    """
    require("app", "starlette", "uvicorn")
    user, _, password = (options.auth or "").partition(":")
    if options.auth is not None and not (user and password):
        raise InputError("--auth must be user:password, such as --auth clinic:S3cret")
    parse_size(options.max_upload)
    if bool(options.models) == options.demo:
        raise InputError("give a RUN, or --demo without one")
    find_models(options.models)
    with listen(options.host, options.port) as listening:
        # So that a temporary folder is removed at SIGTERM, too.
        previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            models = name_models([str(find_demo_run())] if options.demo else options.models)
            serve(listening, models, (user, password) if user else None, options)
        finally:
            signal.signal(signal.SIGTERM, previous)


def serve(
    listening: socket.socket, models: dict[str, str], auth: tuple[str, str] | None, options: Options
) -> None:
    """Load models, given by name, say where the page is, and serve."""
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
        print(
            "warning: everybody who reaches this machine can use the app: --auth user:password restricts it"
        )
    shown = "localhost" if host in OPEN_HOSTS else f"[{host}]" if ":" in host else host
    print(f"  http://{shown}:{port}   Ctrl-C ends it", flush=True)
    try:
        with TemporaryDirectory(prefix="polyp-app-", ignore_cleanup_errors=True) as folder:
            app = make_app(queue, gallery, auth, parse_size(options.max_upload), local, Path(folder))
            make_server(app).run(sockets=[listening])
        raise KeyboardInterrupt  # which ended the server, and which asyncio may have taken for its own
    except OSError as error:
        raise InputError(
            f"the app cannot run: {describe_error(error)}; TMPDIR=FOLDER names another"
        ) from error
    finally:
        queue.close()


def parse_size(text: str) -> int:
    """Bytes of a size such as 20MB.

    Raises:
        InputError: it is none.
    """
    try:
        size = int(float(text[:-2]) * UNITS[text[-2:].upper()])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise InputError(f"--max-upload {text} must be a number with KB, MB or GB, such as 20MB")
    return size


def listen(host: str, port: int) -> socket.socket:
    """Reserve a port, before models are loaded.

    Raises:
        InputError: the port is taken, or the host is not an address of this machine.
    """
    problem = f"--host {host} --port {port} cannot be used"
    if not 0 <= port < 2**16:
        raise InputError(f"--port {port} must be between 0 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(
            family, kind, protocol
        )  # asyncio sets TCP_NODELAY where the protocol says TCP
    except (OSError, UnicodeError) as error:
        raise InputError(f"{problem}: {describe_error(error)}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} is in use: give another with --port, or --port 0 for any"
            ) from error
        raise InputError(f"{problem}: {describe_error(error)}") from error
    return listening


def name_models(models: Sequence[str]) -> dict[str, str]:
    """The models by name: the end of each path, as much of it as distinguishes it from the others.

    Raises:
        InputError: one is given twice.
    """
    paths = [Path(model).expanduser().absolute() for model in models]
    if len(set(paths)) < len(paths):
        raise InputError("a RUN is given twice")
    length = next(n for n in range(2, 100) if len({path.parts[-n:] for path in paths}) == len(paths))
    return {"/".join(path.parts[-length:]): model for path, model in zip(paths, models, strict=True)}


def find_demo_run() -> Path:
    """The newest finished run below outputs/; if there is none, quickstart is trained.

    Raises:
        InputError: it cannot be trained from here.
    """
    folders = [file.parent for file in Path("outputs").glob("**/metrics.json")]
    folders = [f for f in folders if RunFolder(f).best_checkpoint.is_file() and RunFolder(f).is_run]
    if folders:
        newest = max(folders, key=lambda folder: RunFolder(folder).metrics_file.stat().st_mtime)
        print(f"polyp app --demo: the newest run here is {newest}")
        return newest
    print("polyp app --demo: no run below outputs/ yet, training one takes about a minute")
    command = [sys.executable, "-m", "polyp.cli", "train", "experiment=quickstart"]
    if code := subprocess.run(command).returncode:
        raise InputError(f"--demo: polyp train experiment=quickstart ended with {code}: see above")
    return find_demo_run()
