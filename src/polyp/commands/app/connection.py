"""HTTP connections that cannot be held for nothing: uvicorn's, with time limits for slow clients and a limit of number.

uvicorn itself waits for ever for a request's headers and body, and for a client to read its answer.
"""

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from polyp.commands.app.replies import HEADERS
from polyp.commands.app.report import report
from polyp.errors import printable

REASONS = {
    400: "this is no HTTP request that can be read",
    408: "the request did not arrive in time",
    431: "the request's headers are too large",
}


@dataclass(frozen=True)
class Limits:
    """Of connections.

    Attributes:
        headers: seconds until a request's headers are there, since the connection or its last answer.
        body: seconds in each of which windows a body must bring `rate` bytes per second.
        rate: bytes per second.
        answer: seconds within which a client must take something of an answer that waits for it.
        connections: at once; beyond, those that have waited longest for a request are closed.
    """

    headers: float = 10
    body: float = 20
    rate: int = 500
    answer: float = 20
    connections: int = 512


class Config(uvicorn.Config):
    """uvicorn's configuration for the app.

    Args:
        app: the application.
        limits: of its connections.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        super().__init__(
            cast(Any, app),
            http=Connection,
            ws="none",
            log_level="critical",  # it would report each page that is open at Ctrl-C
            access_log=False,
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        self.limits = limits


def make_server(app: ASGIApp, limits: Limits = Limits()) -> uvicorn.Server:
    """A server of the application, whose `run` takes the sockets to listen on."""
    return uvicorn.Server(Config(app, limits))


class Connection(H11Protocol):
    """A connection that is closed when its client is too slow.

    It is in one of four stages: `headers` waits for a request, `body` for the rest of it, `answer` for the client to
    read what was written, `work` for the application. A timer looks at it several times within each limit.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timer; make room if there are too many."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.limits: Limits = cast(Config, self.config).limits
        self._enter("headers")
        seconds = min(self.limits.headers, self.limits.body, self.limits.answer) / 10
        self._period = min(1.0, seconds)
        self._timer = self.loop.call_later(self._period, self._check)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives."""
        self.received += len(data)
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._enter("headers")
        super().on_response_complete()

    def resume_writing(self) -> None:
        """The client has taken most of what was written."""
        self._enter("work")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 cannot read; uvicorn calls this where it handles h11's error."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        report("http", f"{self.address} sent what is no HTTP request ({status})")
        self._refuse(status if status in STATUS_PHRASES else 400)

    @property
    def address(self) -> str:
        """Of the client, or of the proxy before it."""
        return printable(self.client[0]) if self.client else "a client"

    @property
    def stage(self) -> str:
        """What the connection waits for."""
        idle = self.cycle is None or self.cycle.response_complete
        unread = self.transport.get_write_buffer_size()
        if self.flow.write_paused or (unread and (idle or self.transport.is_closing())):
            return "answer"
        if self.transport.is_closing():
            return "work"
        if idle:
            return "headers"
        wanted = self.cycle.more_body and not self.flow.read_paused and not self.cycle.waiting_for_100_continue
        return "body" if wanted else "work"

    def _enter(self, stage: str) -> None:
        self._entered, self.since, self.received = stage, self.loop.time(), 0
        self._unread = self.transport.get_write_buffer_size()

    def _check(self) -> None:
        self._timer = self.loop.call_later(self._period, self._check)
        stage = self.stage
        if stage != self._entered:
            self._enter(stage)
        if stage == "work" or self.loop.time() - self.since < getattr(self.limits, stage):
            return
        moved = {
            "headers": False,
            "body": self.received >= self.limits.rate * self.limits.body,
            "answer": self.transport.get_write_buffer_size() < self._unread,
        }
        if moved[stage]:
            self._enter(stage)
        elif stage == "answer":
            report("slow", f"{self.address} did not read its answer: closed")
            self.transport.abort()
        elif stage == "headers" and not self.received:
            self._close()
        else:
            report("slow", f"{self.address} was too slow with a request's {stage}: closed")
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        """Answer with an error unless an answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = json.dumps({"error": REASONS.get(status, REASONS[400])}).encode()
            more = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            headers = list((more | HEADERS).items())
            start = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._close()

    def _close(self) -> None:
        """Close, and let the application know."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _make_room(self) -> None:
        """Close an eighth of the connections: the longest without a request, of the address that has most of these."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one.stage == "headers"]
        count = Counter(one.address for one in waiting)
        waiting.sort(key=lambda one: (-count[one.address], one.since))
        for one in waiting[: max(1, len(self.connections) // 8)]:
            self.connections.discard(one)  # at once: others may come before it is lost
            one.transport.abort()
        limit, busiest = self.limits.connections, waiting[0].address
        report("full", f"over {limit} connections: the oldest of {busiest} without a request were closed")
