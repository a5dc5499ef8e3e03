"""What every request passes: who may come in, how often, and how much they may bring."""

import hmac
import os
import re
from base64 import b64decode
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address, ip_network
from math import ceil
from pathlib import Path
from secrets import token_urlsafe
from time import monotonic, time
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyp.commands.app.report import report

OPEN = (
    *("/api/", "/gallery/", "/answers/"),
    *("/config", "/theme.css", "/assets/", "/static/", "/svelte/", "/favicon.ico", "/robots.txt", "/login_check"),
    *(
        f"/gradio_api/{name}"
        for name in (
            *("info", "openapi.json", "queue/", "call/predict", "call/v2/predict", "upload", "upload_progress"),
            *("file=", "heartbeat/", "startup-events", "theme.css", "app_id", "cancel", "reset"),
        )
    ),
)
"""What there is, by how the path begins. Gradio has more: proxies, streams, remote functions, a code editor."""

CARDS = re.compile(rb'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>|<link rel="manifest"[^>]*>')

MOST_ARRIVING = 500_000_000
"""Bytes of bodies that are on their way at once: they are in memory."""

MOST_HELD = 2_000_000_000
"""Bytes of visitors' files that are on the disk at once; each is deleted after an hour."""

SLACK = 2**16
"""Bytes that a request may have beyond the file in it: the form around it."""

MAX_ACTIVE = 384
"""Requests that are answered at once; a page has two while it is open."""

MAX_ACTIVE_OF_ONE = 128
"""Of one client address; several users may have the same."""

FAILED_LOGINS = 10, 5.0
"""Wrong passwords of one client address: so many at once, then one every so many seconds."""

FAILED_LOGINS_OF_ALL = 50, 1.0
"""Of all addresses together."""

MAX_PATH = 2048
"""Characters of a request's path."""

MAX_ADDRESSES = 1024
"""Addresses whose wrong passwords are remembered, the latest."""

ABANDONED = 120
"""Seconds after which a file that is no longer written to is what remained of an upload that broke off."""

COOKIE = "polyp-known"
"""Held by browsers that have logged in: others' wrong passwords do not keep them waiting."""


class Logins:
    """How long a client address must wait before another password of it is looked at.

    Each wrong password costs an address the seconds of `FAILED_LOGINS`, and all together those of
    `FAILED_LOGINS_OF_ALL`. The debt melts as time passes; from that of so many wrong passwords on, one must wait.
    """

    def __init__(self) -> None:
        self._paid: OrderedDict[str, float] = OrderedDict()  # when the debt of an address has melted
        self._paid_by_all = 0.0

    def wait(self, address: str) -> float:
        """Seconds until a password of this address is looked at; 0 if now."""
        own = _excess(self._paid.get(address, 0.0), *FAILED_LOGINS)
        return max(own, _excess(self._paid_by_all, *FAILED_LOGINS_OF_ALL))

    def fail(self, address: str) -> None:
        """Note a wrong password."""
        self._paid[address] = max(self._paid.pop(address, 0.0), monotonic()) + FAILED_LOGINS[1]
        self._paid_by_all = max(self._paid_by_all, monotonic()) + FAILED_LOGINS_OF_ALL[1]
        if len(self._paid) > MAX_ADDRESSES:
            self._paid.popitem(last=False)


def _excess(paid: float, count: int, seconds: float) -> float:
    return max(0.0, paid - monotonic() - (count - 1) * seconds)


class Guard:
    """ASGI middleware: refuses requests by raising HTTPException, which `Replies` answers.

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
        self.active: Counter[str] = Counter()
        self.auth = None if auth is None else ":".join(auth).encode()
        self.logins, self.cookie = Logins(), token_urlsafe()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or raise HTTPException with 401, 403, 404, 413, 414, 429 or 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, address = Headers(scope=scope), client_address(scope)
        known = self.auth is None or self.check_login(headers, address)
        self.check_request(scope["method"], scope["path"], headers)
        if self.active[address] >= MAX_ACTIVE_OF_ONE:
            report("busy", f"{address} has {MAX_ACTIVE_OF_ONE} requests at once: others of it are refused")
            raise HTTPException(429, "too many requests at once from this address", {"Retry-After": "1"})
        if self.active.total() >= MAX_ACTIVE:
            report("busy", f"{MAX_ACTIVE} requests at once: others are refused")
            raise HTTPException(503, "too many requests at once: try again in a moment")

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and not known:
                MutableHeaders(scope=message).append(
                    "Set-Cookie", f"{COOKIE}={self.cookie}; Path=/; HttpOnly; SameSite=Strict"
                )
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
                report("busy", f"{MOST_ARRIVING / 1e6:g} MB are being sent at once: more is refused")
                raise HTTPException(503, "too much is being sent at once: try again")
            return message

        if scope["path"] == "/":  # Gradio reads files of answers by it
            scope = {**scope, "query_string": b""}
        self.active[address] += 1
        try:
            await self.app(scope, limited, with_cookie)
        finally:
            self.arriving -= brought
            self.active[address] -= 1
            if not self.active[address]:
                del self.active[address]

    @property
    def too_large(self) -> str:
        """What is said of a body beyond the limit."""
        return f"larger than {self.most / 1e6:g} MB, which --max-upload allows"

    def check_login(self, headers: Headers, address: str) -> bool:
        """Whether the client has logged in before; raise HTTPException if the password is wrong, or comes too fast."""
        given = _basic(headers.get("authorization", ""))
        known = hmac.compare_digest(_cookie(headers.get("cookie", "")), self.cookie.encode())
        wait = self.logins.wait(address) if given and not known else 0
        if wait:
            report("login", f"wrong passwords from {address} and others: the next are refused for {wait:.0f} s")
            again = {"Retry-After": str(ceil(wait))}
            raise HTTPException(429, "too many wrong passwords: try again in a few seconds", again)
        if not hmac.compare_digest(given, self.auth or b""):
            if given:
                self.logins.fail(address)
                report("password", f"a wrong user or password from {address}")
            challenge = {"WWW-Authenticate": 'Basic realm="polyp", charset="UTF-8"'}
            raise HTTPException(401, "user and password are needed", challenge)
        return known

    def check_request(self, method: str, path: str, headers: Headers) -> None:
        """Raise HTTPException for a request that is not let through."""
        if len(path) > MAX_PATH:
            raise HTTPException(414, "the address is too long")
        host = headers.get("host", "")
        if self.hosts and _hostname(host) not in self.hosts:
            raise HTTPException(403, "this server answers to this machine's own names alone: start it with --host")
        origin = headers.get("origin")
        if origin is not None and method not in ("GET", "HEAD") and _parts(origin).netloc != host:
            raise HTTPException(403, "a page of another site asks")
        if path != "/" and not path.startswith(OPEN):
            raise HTTPException(404, "there is nothing here")
        if "file=http" in path or "://" in path:
            raise HTTPException(403, "addresses elsewhere are not fetched")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.most + SLACK:
            raise HTTPException(413, self.too_large)
        if path.startswith("/gradio_api/upload") and method == "POST" and self.held() > MOST_HELD:
            report("storage", f"visitors' files take {MOST_HELD / 1e9:g} GB: uploads are refused")
            raise HTTPException(503, "visitors have sent as much as there is room for: try again in an hour")

    def held(self) -> int:
        """Bytes of visitors' files; what remains of uploads that broke off is deleted."""
        total = 0
        for folder, _, files in os.walk(self.visitors):
            for file in files:
                with suppress(OSError):  # its hour is over
                    path = Path(folder, file)
                    stat = path.stat()
                    # Gradio writes an upload here and moves it to a folder of its own once it is complete.
                    if path.parent == self.visitors and time() - stat.st_mtime > ABANDONED:
                        path.unlink()
                    else:
                        total += stat.st_size
        return total


def client_address(scope: Scope) -> str:
    """Of whom a request is: an IPv4 address, or the network of an IPv6 address (/64: one client has all of it)."""
    try:
        address = ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):  # a proxy's X-Forwarded-For may say anything
        return "an unknown address"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address.packed, 64), strict=False))
    return str(address)


def _parts(address: str) -> SplitResult:
    """An address taken apart; empty if it is none, such as `http://[`."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _hostname(host: str) -> str | None:
    """A Host header without the port."""
    return _parts(f"//{host}").hostname


def _cookie(header: str) -> bytes:
    """The value of our cookie; empty if there is none."""
    return cookie_parser(header).get(COOKIE, "").encode()


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
