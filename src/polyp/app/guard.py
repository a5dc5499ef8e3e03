"""What every request passes: who may come in, how much they may bring, and what browsers may do with the answer."""

import hmac
import re
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from traceback import print_exception
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = (
    *("/api/", "/gallery/", "/answers/"),
    *("/config", "/theme.css", "/assets/", "/static/", "/svelte/", "/favicon.ico", "/robots.txt", "/login_check"),
    *(
        f"/gradio_api/{name}"
        for name in (
            *("info", "openapi.json", "queue/", "call/", "upload", "upload_progress", "file=", "heartbeat/"),
            *("startup-events", "theme.css", "app_id", "cancel", "reset", "custom_component/"),
        )
    ),
)
"""What there is, by how the path begins. Gradio has more: proxies, streams, remote functions, a code editor."""

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

CARDS = re.compile(rb'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>|<link rel="manifest"[^>]*>')

MOST_ARRIVING = 500_000_000
"""Bytes of bodies that are on their way at once: they are in memory."""

MOST_HELD = 2_000_000_000
"""Bytes of visitors' files that are on the disk at once; each is deleted after an hour."""

SLACK = 2**16
"""Bytes that a request may have beyond the file in it: the form around it."""


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        auth: user and password, which everything then asks for (HTTP Basic); None lets everybody in.
        most: bytes of a body.
        hosts: the names that this machine may be called by; empty if any. Keeps other sites' pages, whose name may
            lead here (DNS rebinding), from a server that listens on this machine alone.
        visitors: the folder of visitors' files.
    """

    def __init__(
        self, app: ASGIApp, auth: tuple[str, str] | None, most: int, hosts: Sequence[str], visitors: Path
    ) -> None:
        self.app, self.most, self.hosts, self.visitors = app, most, hosts, visitors
        self.arriving = 0
        self.auth = None if auth is None else ":".join(auth).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with 401, 403, 404, 413 or 503 and one line; 500 if it breaks."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets: there are none
            return

        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        brought = 0

        async def limited() -> Message:
            nonlocal brought
            message = await receive()
            arrived = len(message.get("body", b""))
            brought += arrived
            self.arriving += arrived
            if brought > self.most + SLACK:
                raise HTTPException(413, self.too_large)
            if self.arriving > MOST_ARRIVING:
                raise HTTPException(503, "too much is being sent at once: try again")
            return message

        headers = Headers(scope=scope)
        code, reason = self.refusal(scope["method"], scope["path"], headers)
        if code:
            challenge = {"WWW-Authenticate": 'Basic realm="polyp", charset="UTF-8"'} if code == 401 else None
            await JSONResponse({"error": reason}, code, challenge)(scope, receive, guarded)
            return
        if scope["path"] == "/":  # Gradio reads files of answers by it
            scope = {**scope, "query_string": b""}
        try:
            await self.app(scope, limited, guarded)
        except (
            Exception
        ) as error:  # a mistake of ours or of Gradio's: its trace is the operator's, a line the visitor's
            print_exception(error)
            if not begun:
                await JSONResponse({"error": "the server made a mistake, its terminal tells which"}, 500)(
                    scope, receive, guarded
                )
        finally:
            self.arriving -= brought

    @property
    def too_large(self) -> str:
        """What is said of a body beyond the limit."""
        return f"larger than {self.most / 1e6:g} MB, which --max-upload allows"

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str]:
        """Why a request is not let through: status and reason; 0 if it is."""
        if self.auth is not None and not hmac.compare_digest(_basic(headers.get("authorization", "")), self.auth):
            return 401, "user and password are needed"
        host = headers.get("host", "")
        if self.hosts and _parts(f"//{host}").hostname not in self.hosts:
            return 403, "this server answers to this machine's own names alone: start it with --host"
        origin = headers.get("origin")
        if origin is not None and method not in ("GET", "HEAD") and _parts(origin).netloc != host:
            return 403, "a page of another site asks"
        if path != "/" and not path.startswith(OPEN):
            return 404, "there is nothing here"
        if "file=http" in path or "://" in path:
            return 403, "addresses elsewhere are not fetched"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.most + SLACK:
            return 413, self.too_large
        if path.startswith("/gradio_api/upload") and method == "POST" and self.held() > MOST_HELD:
            return 503, "visitors have sent as much as there is room for: try again in an hour"
        return 0, ""

    def held(self) -> int:
        """Bytes of visitors' files."""
        total = 0
        for file in self.visitors.rglob("*"):
            with suppress(FileNotFoundError):  # its hour is over
                total += file.stat().st_size
        return total


def _parts(address: str) -> SplitResult:
    """An address taken apart; empty if it is none, such as `http://[`."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _basic(header: str) -> bytes:
    """user:password of an Authorization header; empty if there is none."""
    kind, _, coded = header.partition(" ")
    try:
        return b64decode(coded, validate=True) if kind.lower() == "basic" else b""
    except ValueError:
        return b""


class WithoutCards:
    """ASGI middleware: Gradio's page without what it tells other sites of itself, which names pictures elsewhere.

    Args:
        app: what is asked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; take the cards and the manifest from the page."""
        if scope["type"] != "http" or scope["path"] != "/":
            await self.app(scope, receive, send)
            return
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message = {}
        page = b""

        async def gathered(message: Message) -> None:
            nonlocal start, page
            if message["type"] == "http.response.start":
                start = message
                return
            page += message.get("body", b"")
            if not message.get("more_body"):
                page = CARDS.sub(b"", page)
                MutableHeaders(scope=start)["content-length"] = str(len(page))
                await send(start)
                await send({"type": "http.response.body", "body": page})

        await self.app({**scope, "headers": plain}, receive, gathered)
