"""The web server: the page, and an HTTP API for scripts. No route takes a path.

curl --data-binary @image.jpg 'http://127.0.0.1:7860/api/predict?threshold=0.5'
curl --data-binary @image.jpg -o mask.png 'http://127.0.0.1:7860/api/mask'
"""

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from polyp.commands.app import media
from polyp.commands.app.gallery import PREFIX, Gallery
from polyp.commands.app.inference_queue import Busy, InferenceQueue, InputImage, Prediction
from polyp.commands.app.security import Guard, handle_exception
from polyp.commands.predict.results import encode
from polyp.commands.predict.video import predict_video
from polyp.errors import InputError, pick
from polyp.inference.polyps import compute_mask
from polyp.inference.predictor import Predictor

T = TypeVar("T")

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
MAX_FRAMES = 3000  # that are read of a video: two minutes
MAX_VIDEOS = 4  # on the disk at once: one is annotated, the others wait
POLL = 0.1  # seconds between two checks of a waiting request: its position, and whether its client has left
CHUNK = 3 * 2**18  # bytes of a file in one line of JSON; divisible by 3 for base64

STATIC = {
    "/": "text/html",
    "/app.js": "text/javascript",
    "/app.css": "text/css",
    "/icon.svg": "image/svg+xml",
}


class Server:
    """The routes, each a method.

    Uploads have at most `max_upload` bytes. Videos are in `folder` while they are annotated, by default the
    system's temporary folder.
    """

    def __init__(self, queue: InferenceQueue, gallery: Gallery, max_upload: int, folder: Path | None) -> None:
        self.queue, self.gallery, self.max_upload, self.folder = queue, gallery, max_upload, folder
        self.videos = 0
        self.turns: list[threading.Event] = []  # one for each uploaded video; the first is annotated

    def models(self, request: Request) -> Response:
        """The models' names and thresholds."""
        predictors = self.queue.predictors.items()
        return JSONResponse([{"model": name, "threshold": p.threshold} for name, p in predictors])

    def settings(self, request: Request) -> Response:
        """The models, test images and limits, which the page requests once."""
        predictors = self.queue.predictors.items()
        models = {name: {"threshold": p.threshold, "backend": p.backend} for name, p in predictors}
        images = [{"key": key, "name": key.removeprefix(PREFIX)} for key in self.gallery.images]
        limits = {"max_upload": self.max_upload, "max_frames": MAX_FRAMES}
        return JSONResponse({"models": models, "images": images, "note": self.gallery.note} | limits)

    def thumbnail(self, request: Request) -> Response:
        """A small picture of a test image."""
        keys, index = list(self.gallery.images), request.path_params["index"]
        if index >= len(keys):
            raise HTTPException(404, "there is no such image")
        return Response(self.gallery.make_thumbnail(keys[index]), media_type="image/jpeg")

    async def predict(self, request: Request) -> Response:
        """The polyps of the image in the body, as JSON."""

        def make(prediction: Prediction, threshold: float, *_: Any) -> dict[str, Any]:
            return media.describe_polyps(prediction, threshold)

        return JSONResponse(await read_last(self._predict(request, make, cached=False)))

    async def mask(self, request: Request) -> Response:
        """The mask of the image in the body: a PNG of its size, 255 where there is a polyp, else 0."""

        def make(prediction: Prediction, threshold: float, *_: Any) -> bytes:
            return encode(compute_mask(prediction.probability, threshold))

        content = await read_last(self._predict(request, make, cached=False))
        return Response(content, media_type="image/png")

    async def result(self, request: Request) -> Response:
        """What the page shows of the image in the body (POST), or of a cached or a test image (GET).

        The response is lines of JSON: those of `_predict`.
        """
        return await stream_lines(request, self._predict(request, media.describe_result))

    async def picture(self, request: Request) -> Response:
        """A view as a PNG of the image's size, to save."""
        content = await read_last(self._predict(request, lambda *arguments: encode(media.draw(*arguments))))
        name = PurePath(request.query_params.get("name", "")).stem or "image"
        name = quote(f"{name}_{request.query_params.get('view', media.VIEWS[0])}.png")
        headers = {"Content-Disposition": f"attachment; filename*=utf-8''{name}"}
        return Response(content, headers=headers, media_type="image/png")

    async def _predict(
        self, request: Request, make: Callable[[Prediction, float, float, str], T], cached: bool = True
    ) -> AsyncGenerator[Any, None]:
        """Predict the image of a request, and call `make` with prediction, threshold, opacity and view.

        Yields `ahead`, the number of requests before this one, whenever it changes, then what `make` returns.

        Raises:
            ClientDisconnect: the client has closed the connection.
        """
        model, threshold, opacity, view = self._parse(request)
        content = await read_image(request) if request.method == "POST" else b""
        name = request.query_params.get("name", "the image")
        key = media.hash_bytes(content) if content else request.query_params.get("image", "")

        def load() -> InputImage:
            if content:
                return media.decode_upload(content, name)
            if key not in self.gallery.images:
                raise HTTPException(410, "the image is no longer in memory: choose it again")
            return self.gallery.read(key)

        def work() -> T:
            if cached:
                prediction = self.queue.predict_cached(key, load, model, view == "uncertainty")
            else:
                prediction = self.queue.predict(load, model)
            return make(prediction, threshold, opacity, view)

        future = self.queue.submit(work)
        result = asyncio.wrap_future(future)
        ahead = 0
        try:
            while not result.done():
                await asyncio.wait([result], timeout=POLL)
                if not result.done() and await request.is_disconnected():
                    raise ClientDisconnect
                if ahead != (ahead := self.queue.find_position(future)):
                    yield {"ahead": ahead}
            yield result.result()
        finally:
            result.cancel()

    async def video(self, request: Request) -> Response:
        """Annotate the video in the body.

        The response is lines of JSON: `ahead` (the number of videos before this one) while it waits,
        `progress` while it is annotated, then the summary, then the files in pieces of base64: `video` (WebM)
        and `table` (CSV). The server keeps none of it.
        """
        model, threshold = self._parse(request)[:2]
        return await stream_lines(request, self._annotate(request, self.queue.predictors[model], threshold))

    async def _annotate(
        self, request: Request, predictor: Predictor, threshold: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        name = PurePath(request.query_params.get("name", "video")).name
        if self.videos >= MAX_VIDEOS:
            raise Busy("too many videos are waiting: try again in a few minutes")
        self.videos += 1
        cancelled = threading.Event()
        try:
            with TemporaryDirectory(dir=self.folder, prefix="video-", ignore_cleanup_errors=True) as folder:
                path = Path(folder, "upload")
                with path.open("wb") as file:
                    async for chunk in request.stream():
                        file.write(chunk)
                if not path.stat().st_size:
                    raise InputError("no video: send its bytes as the body")
                with ExitStack() as stack:
                    self.turns.append(cancelled)
                    stack.callback(self.turns.remove, cancelled)
                    ahead = 0
                    while position := self.turns.index(cancelled):
                        if position != ahead:
                            yield {"ahead": (ahead := position)}
                        await asyncio.sleep(POLL)
                    progress: tuple[int, int | None] = 0, None

                    def report(completed: int, total: int | None) -> None:
                        nonlocal progress
                        progress = completed, total

                    def predict_all(images: Sequence[np.ndarray]) -> list[np.ndarray]:
                        if cancelled.is_set():
                            raise InputError("the client has left")
                        # Through the queue, so that other requests are handled between batches of frames.
                        work = partial(predictor.predict_all, images)
                        return self.queue.submit(work, limited=False).result()

                    table, video = Path(folder, "polyps.csv"), Path(folder, "polyps.webm")
                    queued: Any = SimpleNamespace(predict_all=predict_all)
                    arguments = path, queued, threshold, table, video, MAX_FRAMES, report
                    loop = asyncio.get_running_loop()
                    future = loop.run_in_executor(None, predict_video, *arguments)
                    stack.callback(future.cancel)
                    completed = 0
                    while not future.done():
                        await asyncio.wait([future], timeout=POLL)
                        if completed != (completed := progress[0]):
                            yield {"progress": progress}
                    try:
                        summary = future.result()
                    except InputError as error:
                        raise InputError(str(error).replace(str(path), name)) from error
                yield {
                    "frames": summary.frames,
                    "frames_with_polyps": summary.with_polyps,
                    "rate": summary.rate,
                    "damaged": bool(summary.problem),
                }
                for kind, result in (("video", video), ("table", table)):
                    with result.open("rb") as content:
                        while chunk := content.read(CHUNK):
                            yield {kind: b64encode(chunk).decode()}
        finally:
            cancelled.set()
            self.videos -= 1

    def _parse(self, request: Request) -> tuple[str, float, float, str]:
        """The model's name, threshold, opacity and view of a query, or their defaults."""
        query = request.query_params
        model, predictor = self.queue.find_predictor(query.get("model"))
        threshold = parse_share("threshold", query.get("threshold", str(predictor.threshold)))
        opacity = parse_share("opacity", query.get("opacity", "0.3"))
        view = query.get("view", media.VIEWS[0])
        pick("view", view, dict.fromkeys(media.VIEWS))
        return model, threshold, opacity, view


async def read_last(lines: AsyncGenerator[Any, None]) -> Any:
    """The last value of a generator."""
    async for line in lines:
        last = line
    return last


async def stream_lines(request: Request, lines: AsyncGenerator[Any, None]) -> Response:
    """A response with a JSON object in each line. An error before the first line is raised, so that the
    response gets its status; a later error becomes a line with `error` and `status`.
    """
    first = await anext(lines)

    async def write_lines() -> AsyncIterator[str]:
        yield json.dumps(first) + "\n"
        try:
            async for line in lines:
                yield json.dumps(line) + "\n"
        except Exception as error:  # the status is already sent
            response = await handle_exception(request, error)
            if response.body:
                yield json.dumps(json.loads(bytes(response.body)) | {"status": response.status_code}) + "\n"
        finally:
            await lines.aclose()

    return StreamingResponse(write_lines(), media_type="application/x-ndjson")


async def read_image(request: Request) -> bytes:
    """The body of a request, which must be an image's bytes."""
    advice = "send its bytes as the body, with curl by --data-binary @image.jpg"
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise media.NotAnImage(f"a form is not an image: {advice}")
    content = await request.body()
    if not content:
        raise InputError(f"no image: {advice}")
    return content


def parse_share(name: str, text: str) -> float:
    """The number in 0-1 of a query; raises InputError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{name}={text} must be a number between 0 and 1")
    return value


def make_app(
    queue: InferenceQueue,
    gallery: Gallery,
    auth: tuple[str, str] | None = None,
    max_upload: int = 20_000_000,
    local: bool = True,
    folder: Path | None = None,
) -> Starlette:
    """The web application.

    Args:
        queue, gallery, max_upload, folder: see `Server`.
        auth: user and password; None admits everybody.
        local: whether only this machine can reach it.
    """
    server = Server(queue, gallery, max_upload, folder)
    routes = []
    for path, kind in STATIC.items():
        content = (Path(__file__).with_name("static") / (path[1:] or "index.html")).read_bytes()
        routes.append(Route(path, Response(content, media_type=kind), methods=["GET"]))
    routes += [
        Route("/api/predict", server.predict, methods=["POST"]),
        Route("/api/mask", server.mask, methods=["POST"]),
        Route("/api/models", server.models),
        Route("/api/settings", server.settings),
        Route("/api/thumbnails/{index:int}", server.thumbnail),
        Route("/api/result", server.result, methods=["GET", "POST"]),
        Route("/api/picture", server.picture),
        Route("/api/video", server.video, methods=["POST"]),
    ]
    guard = Middleware(Guard, auth=auth, max_upload=max_upload, hosts=LOCAL_HOSTS if local else ())
    handlers: Any = {HTTPException: handle_exception, Exception: handle_exception}
    return Starlette(
        routes=routes,
        middleware=[Middleware(ExceptionMiddleware, handlers=handlers), guard],
        exception_handlers={HTTPException: handle_exception},
    )
