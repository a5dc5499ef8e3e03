"""The checks of every request, and the responses to errors."""

import hmac
import sys
from base64 import b64decode
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address, ip_network
from math import ceil
from secrets import token_urlsafe
from time import monotonic
from traceback import print_exception
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyp.commands.app.inference_queue import Busy
from polyp.commands.app.media import NotAnImage
from polyp.errors import InputError, describe_error, printable
from polyp.images import TooManyPixels

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""The headers of every response; by the policy the browser requests nothing from another host."""

STATUSES = {Busy: 503, NotAnImage: 415, TooManyPixels: 413, InputError: 400}  # the first match counts
MAX_ARRIVING = 500_000_000  # bytes of all request bodies in memory
MAX_ACTIVE = 128  # concurrent requests of an address, which several people may share

FAILED_LOGINS = 10, 5.0  # of an address: wrong passwords at once, and seconds after which another is allowed
FAILED_LOGINS_OF_ALL = 50, 1.0  # of all addresses together
MAX_ADDRESSES = 1024  # addresses whose wrong passwords are remembered
MAX_PATH = 2048  # characters of a request's path
COOKIE = "polyp-login"  # of browsers that have logged in, which wrong passwords of other clients do not delay
QUIET = 10.0  # least seconds between two lines of a kind to the operator

_printed_at: dict[str, float] = {}


def log_problem(kind: str, message: str) -> bool:
    """Print a line to stderr, at most one of a kind in `QUIET` seconds; returns whether it was printed."""
    if monotonic() - _printed_at.get(kind, -QUIET) < QUIET:
        return False
    _printed_at[kind] = monotonic()
    with suppress(OSError, ValueError):  # stderr may be a file on a full disk, or closed
        print(f"polyp app: {message}", file=sys.stderr, flush=True)
    return True


def error_response(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response `{"error": reason}`; the reason becomes one line of at most 500 characters."""
    retry = {"Retry-After": "1"} if status in (429, 503) else {}
    return JSONResponse({"error": clean_line(reason)}, status, {**HEADERS, **retry, **(headers or {})})


def clean_line(text: str) -> str:
    """Text that may come from a client, as one line without control characters."""
    return " ".join(printable(word) for word in text.split())[:500]


async def handle_exception(request: Request, error: Exception) -> Response:
    """The response to an exception; a line for the operator unless the client has caused it."""
    if isinstance(error, HTTPException):
        return error_response(error.status_code, error.detail, error.headers)
    if isinstance(error, ClientDisconnect):
        address = find_address(request.scope)
        log_problem("left", f"{address} left before {clean_line(request.scope['path'])} was answered")
        return Response()
    if isinstance(error, InputError):
        status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
        return error_response(status, str(error))
    if isinstance(error, OSError):
        log_problem("storage", f"an upload cannot be stored: {describe_error(error)}")
        return error_response(503, f"the server cannot store files: {describe_error(error)}")
    if log_problem("bug", f"{type(error).__name__}: {describe_error(error)}"):
        print_exception(error, limit=-6)
    return error_response(500, "an internal error: the server's terminal shows it")


class LoginLimiter:
    """Limits the rate of wrong passwords, of each address and of all together (the key "").

    This is a leaky bucket: each wrong password adds the seconds of its limit, which drain with time. Clients
    must wait while the bucket holds the seconds of as many wrong passwords as are allowed at once.
    """

    def __init__(self) -> None:
        self._empty_at: OrderedDict[str, float] = OrderedDict()

    def compute_wait(self, address: str) -> float:
        """Seconds until this address may try a password."""
        wait = 0.0
        for key, (count, seconds) in ((address, FAILED_LOGINS), ("", FAILED_LOGINS_OF_ALL)):
            level = self._empty_at.get(key, 0.0) - monotonic()
            wait = max(wait, level - (count - 1) * seconds)
        return wait

    def add_failure(self, address: str) -> None:
        """Count a wrong password."""
        for key, (_, seconds) in ((address, FAILED_LOGINS), ("", FAILED_LOGINS_OF_ALL)):
            self._empty_at[key] = max(self._empty_at.pop(key, 0.0), monotonic()) + seconds
        if len(self._empty_at) > MAX_ADDRESSES:
            self._empty_at.popitem(last=False)


class Guard:
    """ASGI middleware that refuses requests by raising HTTPException, and adds `HEADERS` to responses.

    Args:
        app: the application.
        auth: user and password that every request needs (HTTP Basic); None if no password is needed.
        max_upload: the largest body in bytes.
        hosts: names by which clients may address the server; empty for any. Protects a server on this machine
            from web pages whose host name resolves to this machine (DNS rebinding).
    """

    def __init__(
        self, app: ASGIApp, auth: tuple[str, str] | None, max_upload: int, hosts: Sequence[str]
    ) -> None:
        self.app, self.max_upload, self.hosts = app, max_upload, hosts
        self.arriving = 0
        self.active: Counter[str] = Counter()
        self.auth = b"" if auth is None else ":".join(auth).encode()
        self.logins, self.cookie = LoginLimiter(), token_urlsafe()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise HTTPException with 401, 403, 413, 414, 429 or 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, address = Headers(scope=scope), find_address(scope)
        has_cookie = not self.auth or self.check_login(headers, address)
        self.check_request(scope, headers)
        if self.active[address] >= MAX_ACTIVE:
            log_problem("busy", f"{address} has {MAX_ACTIVE} requests at once: its others are refused")
            raise HTTPException(429, "too many requests at once from this address")
        received = 0

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                response_headers = MutableHeaders(scope=message)
                response_headers.update(HEADERS)
                if not has_cookie:
                    response_headers.append(
                        "Set-Cookie", f"{COOKIE}={self.cookie}; Path=/; HttpOnly; SameSite=Strict"
                    )
            await send(message)

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self.arriving += size
            self.check_size(received)
            if self.arriving > MAX_ARRIVING:
                log_problem("busy", f"{MAX_ARRIVING / 1e6:g} MB are being uploaded at once: more is refused")
                raise HTTPException(503, "too much is being uploaded at once: try again")
            return message

        self.active[address] += 1
        try:
            await self.app(scope, receive_limited, send_with_headers)
        finally:
            self.arriving -= received
            self.active[address] -= 1
            if not self.active[address]:
                del self.active[address]

    def check_login(self, headers: Headers, address: str) -> bool:
        """Whether the client has the cookie; raises HTTPException for a wrong password or after too many."""
        password = parse_basic(headers.get("authorization", ""))
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        has_cookie = hmac.compare_digest(cookie.encode(), self.cookie.encode())
        wait = self.logins.compute_wait(address) if password and not has_cookie else 0
        if wait:
            message = f"wrong passwords from {address} and others: the next are refused for {wait:.0f} s"
            log_problem("login", message)
            retry = {"Retry-After": str(ceil(wait))}
            raise HTTPException(429, "too many wrong passwords: try again in a few seconds", retry)
        if not hmac.compare_digest(password, self.auth):
            if password:
                self.logins.add_failure(address)
                log_problem("password", f"a wrong user or password from {address}")
            challenge = {"WWW-Authenticate": 'Basic realm="polyp", charset="UTF-8"'}
            raise HTTPException(401, "user and password are needed", challenge)
        return has_cookie

    def check_request(self, scope: Scope, headers: Headers) -> None:
        """Raise HTTPException for a path, host, origin or length that is not allowed."""
        if len(scope["path"]) > MAX_PATH:
            raise HTTPException(414, "the address is too long")
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts and parse_host(f"//{host}", "hostname") not in self.hosts:
            reason = "this server only answers to the names of this machine: start it with --host"
            raise HTTPException(403, reason)
        is_reading = scope["method"] in ("GET", "HEAD")
        if origin is not None and not is_reading and parse_host(origin, "netloc") != host:
            raise HTTPException(403, "requests from pages of other sites are refused")
        length = headers.get("content-length", "0")
        self.check_size(int(length) if length.isdecimal() else self.max_upload + 1)

    def check_size(self, size: int) -> None:
        """Raise HTTPException for a body that is too large."""
        if size > self.max_upload:
            limit = f"{self.max_upload / 1e6:g} MB"
            raise HTTPException(413, f"larger than {limit}, the limit that --max-upload sets")


def find_address(scope: Scope) -> str:
    """The client's IPv4 address, or the /64 network of its IPv6 address, which belongs to one client."""
    try:
        address = ip_address(scope["client"][0])
    except (KeyError, TypeError, ValueError):  # a proxy's X-Forwarded-For may hold anything
        return "an unknown address"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address.packed, 64), strict=False))
    return str(address)


def parse_host(url: str, part: str) -> Any:
    """The `hostname` or `netloc` of a URL; None for a malformed URL such as `http://[`."""
    try:
        return getattr(urlsplit(url), part)
    except ValueError:
        return None


def parse_basic(header: str) -> bytes:
    """user:password of an Authorization header; empty if there is none."""
    kind, _, encoded = header.partition(" ")
    try:
        return b64decode(encoded, validate=True) if kind.lower() == "basic" else b""
    except ValueError:
        return b""
