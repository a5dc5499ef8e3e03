"""The web server: the page, and an HTTP API for scripts.

curl --data-binary @image.jpg 'http://127.0.0.1:7860/api/predict?threshold=0.5'
curl --data-binary @image.jpg -o mask.png 'http://127.0.0.1:7860/api/mask'
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import cv2
import gradio
import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from gradio.utils import get_upload_folder
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from polyp.commands.app import answer, drawing
from polyp.commands.app.desk import Busy, Desk, Seen
from polyp.commands.app.gallery import Gallery
from polyp.commands.app.guard import Guard, WithoutCards
from polyp.commands.app.look import CSS, HEAD, THEME
from polyp.commands.app.page import build
from polyp.commands.app.replies import Replies, error_reply, validation_reason
from polyp.commands.app.upload import NotAnImage, checked, stem, uploaded
from polyp.errors import InputError
from polyp.images import TooManyPixels
from polyp.inference import polyps

STATUSES = {Busy: 503, NotAnImage: 415, TooManyPixels: 413, InputError: 400}
"""The status of each error; the first class that fits counts."""

T = TypeVar("T")

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a line for each form that cannot be read

LOCAL = ("127.0.0.1", "localhost", "::1")


class Server:
    """What is asked over HTTP; each method is a route.

    Args:
        desk: looks at images.
        gallery: the test images.
    """

    def __init__(self, desk: Desk, gallery: Gallery) -> None:
        self.desk, self.gallery = desk, gallery

    async def predict(self, request: Request, threshold: float | None = None, model: str | None = None) -> Response:
        """The polyps of the image in the body, as JSON."""
        return await self._asked(request, threshold, model, lambda s, t: JSONResponse(answer.facts(s, t)))

    async def mask(self, request: Request, threshold: float | None = None, model: str | None = None) -> Response:
        """The mask of the image in the body: a PNG of its size, 255 where there is a polyp, else 0."""
        return await self._asked(request, threshold, model, lambda s, t: png(polyps.mask(s.probability, t)))

    def models(self) -> list[dict[str, Any]]:
        """The models' names and thresholds."""
        return [{"model": name, "threshold": one.threshold} for name, one in self.desk.predictors.items()]

    def thumbnail(self, number: int) -> Response:
        """A small picture of a test image."""
        if not 0 <= number < len(self.gallery.names):
            raise HTTPException(404, "there is no such image")
        name = list(self.gallery.names)[number]
        return Response(self.gallery.thumbnail(name), media_type="image/jpeg")

    async def kept_mask(self, request: Request, key: str, model: str, threshold: float) -> Response:
        """The mask of an answer that the page shows, to take along."""
        return await self._kept(
            request, key, model, "mask", lambda seen: polyps.mask(seen.probability, checked(threshold))
        )

    async def kept_overlay(self, request: Request, key: str, model: str, threshold: float, opacity: float) -> Response:
        """Its overlay."""
        draw = drawing.draw
        return await self._kept(
            request, key, model, "overlay", lambda seen: draw(seen, checked(threshold), checked(opacity))
        )

    async def _kept(
        self, request: Request, key: str, model: str, what: str, draw: Callable[[Seen], np.ndarray]
    ) -> Response:
        def work() -> tuple[str, Response]:
            seen = self.desk.kept(key, model)
            return seen.photo.name, png(draw(seen))

        name, response = await self._turn(request, work)
        response.headers["Content-Disposition"] = f"attachment; filename*=utf-8''{quote(f'{stem(name)}_{what}.png')}"
        return response

    async def _asked(
        self, request: Request, threshold: float | None, model: str | None, reply: Callable[[Seen, float], Response]
    ) -> Response:
        _, predictor = self.desk.predictor(model)
        chosen = predictor.threshold if threshold is None else checked(threshold)
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise NotAnImage(
                "a form is not an image: send its bytes as the body, with curl by --data-binary @image.jpg"
            )
        content = await request.body()
        if not content:
            raise InputError("no image: send its bytes as the body, with curl by --data-binary @image.jpg")
        work = lambda: reply(self.desk.ask(lambda: uploaded(content, "the image"), model), chosen)  # noqa: E731
        return await self._turn(request, work)

    async def _turn(self, request: Request, work: Callable[[], T]) -> T:
        """Do something at the desk when it is its turn, unless the client leaves before.

        Raises:
            ClientDisconnect: it has left.
            Busy: as `Desk.submit` does.
        """
        answer = asyncio.wrap_future(self.desk.submit(work))
        left = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            answer.cancel()
            left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class WrongMethod:
    """ASGI application of a route's other methods; Gradio, which comes after it, would say that there is no route.

    Args:
        methods: that the route has.
    """

    def __init__(self, methods: Sequence[str]) -> None:
        self.methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raise HTTPException."""
        allowed = ", ".join(self.methods)
        raise HTTPException(405, f"{scope['method']} is not possible here: {allowed} is", {"Allow": allowed})


def png(picture: np.ndarray) -> Response:
    """A mask or an RGB picture as a response."""
    ordered = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return Response(cv2.imencode(".png", ordered)[1].tobytes(), media_type="image/png")


def application(
    desk: Desk, gallery: Gallery, auth: tuple[str, str] | None = None, most: int = 20_000_000, local: bool = True
) -> FastAPI:
    """The web application.

    Args:
        desk: looks at images.
        gallery: the test images.
        auth: user and password; None lets everybody in.
        most: bytes of an upload.
        local: it is asked from this machine alone.
    """
    app = FastAPI(openapi_url=None)  # its pages of documentation come from elsewhere
    server = Server(desk, gallery)
    for path, route, methods in (
        ("/api/predict", server.predict, ["POST"]),
        ("/api/mask", server.mask, ["POST"]),
        ("/api/models", server.models, ["GET", "HEAD"]),
        ("/gallery/{number}.jpg", server.thumbnail, ["GET", "HEAD"]),
        ("/answers/mask.png", server.kept_mask, ["GET", "HEAD"]),
        ("/answers/overlay.png", server.kept_overlay, ["GET", "HEAD"]),
    ):
        app.add_api_route(path, route, methods=methods, response_model=None)
        app.router.routes.append(Route(path, WrongMethod(methods)))
    app.add_exception_handler(RequestValidationError, _invalid)

    async def mount() -> FastAPI:
        return gradio.mount_gradio_app(
            app,
            build(desk, gallery),
            "/",
            footer_links=["api", "settings"],
            run_history=False,
            show_error=True,
            max_file_size=most,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=THEME,
            css_paths=CSS,
            head=HEAD,
        )

    mounted = asyncio.run(mount())  # outside of an event loop, Gradio opens several and leaves them open
    mounted.add_middleware(WithoutCards)
    visitors = Path(get_upload_folder())
    mounted.add_middleware(Guard, auth=auth, most=most, hosts=LOCAL if local else (), visitors=visitors)
    mounted.add_middleware(Replies, statuses=STATUSES)
    return mounted


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_reply(400, validation_reason(error.errors()[0]))
