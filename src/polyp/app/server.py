"""The web server: the page, and an HTTP API for scripts.

curl --data-binary @image.jpg 'http://127.0.0.1:7860/api/predict?threshold=0.5'
curl --data-binary @image.jpg -o mask.png 'http://127.0.0.1:7860/api/mask'
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import gradio
import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from gradio.utils import get_upload_folder
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from polyp.app import answer, drawing
from polyp.app.desk import Busy, Desk, Seen
from polyp.app.gallery import Gallery
from polyp.app.guard import Guard, WithoutCards
from polyp.app.look import CSS, HEAD, THEME
from polyp.app.page import build
from polyp.app.upload import NotAnImage, checked, stem, uploaded
from polyp.errors import InputError
from polyp.inference import polyps
from polyp.inference.image import TooManyPixels

CODES = {InputError: 400, Busy: 503, NotAnImage: 415, TooManyPixels: 413}
"""What each error answers."""

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

    def kept_mask(self, key: str, model: str, threshold: float) -> Response:
        """The mask of an answer that the page shows, to take along."""
        return self._kept(key, model, "mask", lambda seen: polyps.mask(seen.probability, checked(threshold)))

    def kept_overlay(self, key: str, model: str, threshold: float, opacity: float) -> Response:
        """Its overlay."""
        draw = drawing.draw
        return self._kept(key, model, "overlay", lambda seen: draw(seen, checked(threshold), checked(opacity)))

    def _kept(self, key: str, model: str, what: str, draw: Callable[[Seen], np.ndarray]) -> Response:
        def work() -> tuple[str, Response]:
            seen = self.desk.kept(key, model)
            return seen.photo.name, png(draw(seen))

        name, response = self.desk.turn(work)
        response.headers["Content-Disposition"] = f"attachment; filename*=utf-8''{quote(f'{stem(name)}_{what}.png')}"
        return response

    async def _asked(
        self, request: Request, threshold: float | None, model: str | None, reply: Callable[[Seen, float], Response]
    ) -> Response:
        _, predictor = self.desk.predictor(model)
        chosen = predictor.threshold if threshold is None else checked(threshold)
        content = await request.body()
        if not content:
            raise InputError("no image: send its bytes as the body, with curl by --data-binary @image.jpg")
        work = lambda: reply(self.desk.ask(lambda: uploaded(content, "the image"), model), chosen)  # noqa: E731
        return await run_in_threadpool(self.desk.turn, work)


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
        ("/api/models", server.models, ["GET"]),
        ("/gallery/{number}.jpg", server.thumbnail, ["GET"]),
        ("/answers/mask.png", server.kept_mask, ["GET"]),
        ("/answers/overlay.png", server.kept_overlay, ["GET"]),
    ):
        app.add_api_route(path, route, methods=methods, response_model=None)
    for error, code in CODES.items():
        app.add_exception_handler(error, lambda _, raised, code=code: _said(str(raised), code))
    app.add_exception_handler(HTTPException, lambda _, raised: _said(raised.detail, raised.status_code))
    app.add_exception_handler(RequestValidationError, lambda _, raised: _said(_invalid(raised), 400))

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
    return mounted


def _said(message: str, code: int) -> JSONResponse:
    return JSONResponse({"error": message}, code, {"Retry-After": "1"} if code == 503 else None)


def _invalid(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
