"""`polyp app`: a page in the browser, and an HTTP API, from runs."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from polyp.errors import InputError, describe_error, require
from polyp.runs.folder import RunFolder
from polyp.runs.model import Source

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}

VIDEOS = (
    "protocol_whitelist;file|"
    "format_whitelist;mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,mpeg,mpegvideo,mpegts,asf,flv,ogg"
)
"""What FFmpeg may open: no playlist, not even within a video, since that would make it read other files."""

OPEN_HOSTS = ("0.0.0.0", "::")


def serve(
    given: Sequence[str],
    root: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    max_upload: str = "20MB",
    demo: bool = False,
    compute: str = "exact",
    device: str = "auto",
) -> None:
    """Serve until Ctrl-C.

    Args:
        given: runs or checkpoints.
        root: where the runs' data are, if they have moved.
        host, port: to listen on; port 0 is any that is free.
        auth: user:password, which everything then asks for.
        max_upload: such as 20MB.
        demo: take the newest run below outputs/, or train one.
        compute, device: as `load_predictor` takes them.

    Raises:
        InputError: an option or a run cannot be used, or the port is taken.
    """
    require("app", "gradio", "uvicorn")
    user = credentials(auth)
    most = size(max_upload)
    if bool(given) == demo:
        raise InputError("give a RUN, or --demo without one")
    listening = listen(host, port)
    ended = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the folder goes, too
    try:
        given = [str(demo_run())] if demo else given
        with _folder() as visitors:
            # What visitors send goes there, and with it. Gradio reads these when it is imported.
            os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = visitors
            os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
            os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = VIDEOS
            _run(listening, named(given), root, user, most, compute, device)
    finally:
        signal.signal(signal.SIGTERM, ended)
        listening.close()


@contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder for what visitors send.

    Raises:
        InputError: none can be made.
    """
    try:
        folder = TemporaryDirectory(prefix="polyp-app-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            f"no temporary folder can be made: {describe_error(error)}; TMPDIR=FOLDER names another"
        ) from error
    with folder as path:
        yield path


def _run(
    listening: socket.socket,
    models: dict[str, str],
    root: str | None,
    user: tuple[str, str] | None,
    most: int,
    compute: str,
    device: str,
) -> None:
    from polyp.commands.app.desk import Desk
    from polyp.commands.app.gallery import gallery_of
    from polyp.inference.predictor import COMPARED

    desk = Desk(models, compute, device)
    gallery = gallery_of([Source.of(run) for run in models.values()], root)

    from polyp.commands.app.connection import make_server
    from polyp.commands.app.server import application

    host, port = listening.getsockname()[:2]
    local = host not in OPEN_HOSTS and host in ("127.0.0.1", "::1")
    app = application(desk, gallery, user, most, local)
    first = next(iter(desk.predictors.values()))
    images = f"{len(gallery.names)} test images" if gallery.names else f"no test images ({gallery.gone})"
    print(f"polyp app: {', '.join(models)} ({first.backend}); {images}")
    for name, predictor in desk.predictors.items():
        if not predictor.is_exact:
            samples = [gallery.photo(image).image for image in list(gallery.names)[:COMPARED]]
            print(f"  {name}: {desk.turn(partial(predictor.describe_deviation, samples))}")
    if not local and user is None:
        print("warning: everybody who reaches this machine can use it: --auth user:password asks who they are")
    shown = "localhost" if host in OPEN_HOSTS else f"[{host}]" if ":" in host else host
    print(f"  http://{shown}:{port}   Ctrl-C ends it", flush=True)
    try:
        make_server(app).run(sockets=[listening])
    finally:
        desk.close()


def credentials(auth: str | None) -> tuple[str, str] | None:
    """User and password.

    Raises:
        InputError: not both are there.
    """
    if auth is None:
        return None
    user, _, password = auth.partition(":")
    if not user or not password:
        raise InputError("--auth must be user:password, such as --auth clinic:S3cret")
    return user, password


def size(text: str) -> int:
    """Bytes of a size such as 20MB.

    Raises:
        InputError: it is none.
    """
    number, unit = text[:-2], text[-2:].upper()
    try:
        most = int(float(number) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        most = 0
    if most <= 0:
        raise InputError(f"--max-upload {text} must be a number with KB, MB or GB, such as 20MB")
    return most


def listen(host: str, port: int) -> socket.socket:
    """A socket that nobody else has; before models are loaded.

    Raises:
        InputError: the port is taken, or the host is none of this machine's.
    """
    if not 0 <= port < 2**16:  # beyond, it is taken for another
        raise InputError(f"--port {port} must be between 0 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)  # asyncio sends at once where it is told that this is TCP
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} --port {port} cannot be used: {describe_error(error)}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use: give another with --port, or --port 0 for any") from error
        raise InputError(f"--host {host} --port {port} cannot be used: {describe_error(error)}") from error
    return bound


def named(given: Sequence[str]) -> dict[str, str]:
    """Each run by a name for people: the end of its path, as much of it as tells it from the others.

    Raises:
        InputError: one is given twice.
    """
    paths = [Path(os.path.abspath(Path(run).expanduser())) for run in given]
    if len(set(paths)) < len(paths):
        raise InputError("a RUN is given twice")
    length = next(n for n in range(2, 100) if len({path.parts[-n:] for path in paths}) == len(paths))
    return {"/".join(path.parts[-length:]): run for path, run in zip(paths, given, strict=True)}


def demo_run() -> Path:
    """The newest finished run below outputs/; if there is none, quickstart is trained.

    Raises:
        InputError: it cannot be trained from here.
    """
    done = [file.parent for file in Path("outputs").glob("**/metrics.json")]
    done = [folder for folder in done if RunFolder(folder).best_checkpoint.is_file() and RunFolder(folder).is_run]
    if done:
        newest = max(done, key=lambda folder: (RunFolder(folder).metrics_file).stat().st_mtime)
        print(f"polyp app --demo: the newest run here is {newest}")
        return newest
    if not (Path("train.py").is_file() and Path("conf").is_dir()):
        raise InputError("--demo needs a run below outputs/, or train.py to make one: start it in polyp's repository")
    print("polyp app --demo: no run below outputs/ yet; trains experiment=quickstart, which takes about a minute")
    code = subprocess.run([sys.executable, "train.py", "experiment=quickstart"]).returncode
    if code:
        raise InputError(f"--demo: python train.py experiment=quickstart ended with {code}: see above")
    return demo_run()
