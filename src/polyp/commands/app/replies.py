"""What every reply has: the headers that keep browsers from harm, and one form of errors."""

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from traceback import print_exception
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyp.commands.app.report import report
from polyp.errors import InputError, describe_error, printable

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page holds scripts, and makes functions of ours
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        *("object-src 'none'", "base-uri 'self'", "form-action 'self'", "frame-ancestors 'none'"),
    )
)
"""Content-Security-Policy: a browser asks no other host for anything."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

KEPT_HEADERS = ("allow", "retry-after", "www-authenticate")
"""Headers of an error that are passed on."""

MAX_ERROR_BODY = 2**16
"""Bytes of an error's body that are looked at for its reason."""

GRADIO = "/gradio_api/"

TRACE = 6
"""Frames of an exception that the operator sees, the innermost."""

MAX_REASON = 500
"""Characters of a reason: it may repeat what the client has sent."""


def one_line(text: str) -> str:
    """A text as one line of at most `MAX_REASON` characters."""
    return " ".join(printable(word) for word in text.split())[:MAX_REASON]


def reason_of(status: int, body: bytes) -> str:
    """The reason that an error's body gives: JSON with "error" or "detail", or plain text; else the status' name."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        said = body.decode(errors="replace")
    if isinstance(said, dict):
        said = said.get("error") or said.get("detail")
    if isinstance(said, list) and said and isinstance(said[0], dict):
        said = validation_reason(said[0])
    if not isinstance(said, str) or not said.strip() or said.lstrip().startswith("<"):
        said = HTTPStatus(status).phrase
    return one_line(said)


def validation_reason(problem: Mapping[str, Any]) -> str:
    """The parameter and what is wrong with it, of an error as pydantic describes it."""
    return f"{'.'.join(map(str, problem.get('loc', ())[1:]))}: {problem.get('msg')}"


class Replies:
    """ASGI middleware: every reply has `HEADERS`, and every error is `{"error": "a line"}`.

    Errors are held back until the application has returned or raised: Starlette answers an exception with plain text
    and only then passes it on.

    Args:
        app: the application.
        statuses: the status of each exception that is a client's mistake; the first class that fits counts.
    """

    def __init__(self, app: ASGIApp, statuses: Mapping[type[InputError], int]) -> None:
        self.app, self.statuses = app, statuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer whatever goes wrong."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets: there are none
            return
        started = False
        failed: Message | None = None
        body = b""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        async def hold_errors(message: Message) -> None:
            nonlocal started, failed, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                failed = message
            elif failed is not None:
                body += message.get("body", b"")[: MAX_ERROR_BODY - len(body)]
            else:
                started = True
                await with_headers(message)

        reply: JSONResponse | None = None
        try:
            await self.app(scope, receive, hold_errors)
        except ClientDisconnect:
            report("gone", f"{_client(scope)} left before {one_line(scope['path'])} was answered")
            return
        except Exception as error:  # whatever a handler raises: its reason or trace is the operator's
            reply = self._of_exception(error, scope["path"])
        except asyncio.CancelledError:  # at the server's end
            if not started:
                await error_reply(503, "the server is shutting down")(scope, receive, with_headers)
            raise
        if failed is not None and reply is None:
            headers = Headers(scope=failed)
            kept = {name: headers[name] for name in KEPT_HEADERS if name in headers}
            readable = body if "content-encoding" not in headers else b""
            reply = error_reply(failed["status"], reason_of(failed["status"], readable), kept)
        if reply is not None and not started:
            await reply(scope, receive, with_headers)

    def _of_exception(self, error: Exception, path: str) -> JSONResponse:
        if isinstance(error, HTTPException):
            return error_reply(error.status_code, error.detail, error.headers)
        for kind, status in self.statuses.items():
            if isinstance(error, kind):
                return error_reply(status, str(error))
        if path.startswith(GRADIO) and not isinstance(
            error, OSError
        ):  # its events run elsewhere; here it raises of requests that no page sends
            report("gradio", f"Gradio cannot answer {one_line(path)}: {describe_error(error)}")
            return error_reply(400, "this request does not fit the page")
        return error_reply(*explain(error))


def explain(error: Exception) -> tuple[int, str]:
    """Tell the operator of an error that is not the client's; its status, and what the client is told."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # Gradio wraps what its components raise
    if isinstance(cause, OSError):  # a full disk, or a folder that is gone or may not be written
        report("storage", f"visitors' files cannot be stored: {describe_error(cause)}")
        return 503, f"the server cannot store files: {describe_error(cause)}"
    if report("mistake", f"{type(error).__name__}: {describe_error(error)}"):
        print_exception(error, limit=-TRACE)
    return 500, "the server made a mistake, its terminal tells which"


def error_reply(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error: `{"error": reason}`; with Retry-After if it is a 503."""
    more = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": one_line(reason)}, status, more | dict(headers or {}))


def _client(scope: Scope) -> str:
    return printable(scope["client"][0]) if scope.get("client") else "a client"
