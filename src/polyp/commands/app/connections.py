"""uvicorn with limits on slow clients and on the number of connections; its own limits the idle time only."""

import asyncio
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from polyp.commands.app.security import error_response, log_problem
from polyp.errors import printable

REASONS = {408: "the request did not arrive in time", 431: "the request's headers are too large"}


@dataclass(frozen=True)
class Limits:
    """Limits of connections."""

    seconds: float = 10
    """Of a window of time, in which a request must bring `rate` bytes per second and a client must read a
    response.
    """
    rate: int = 500
    """Bytes per second."""
    connections: int = 512
    """At once; above, those that have waited longest for a request are closed."""


def make_server(app: ASGIApp, limits: Limits = Limits()) -> uvicorn.Server:
    """A server of the application, whose `run` takes the sockets to listen on."""
    config = uvicorn.Config(
        cast(Any, app),
        http=type("LimitedConnection", (Connection,), {"limits": limits}),
        ws="none",
        log_level="critical",  # errors are logged by `security.handle_exception`
        access_log=False,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    return uvicorn.Server(config)


class Connection(H11Protocol):
    """A connection that is closed when its client is too slow; `stage` is what it waits for."""

    limits: Limits

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the first window; make room if there are too many connections."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.opened, self.received, self.drained = self.loop.time(), 0, 0
        self._start_window()
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

    def resume_writing(self) -> None:
        """Note that the client has read most of what was written."""
        self.drained += 1
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Respond to what h11 cannot parse; uvicorn calls this where it handles h11's error."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        log_problem("http", f"{self.address} sent an invalid HTTP request ({status})")
        self._refuse(status if status in STATUS_PHRASES else 400)

    @property
    def address(self) -> str:
        """Of the client."""
        return printable(self.client[0]) if self.client else "a client"

    @property
    def stage(self) -> str:
        """`request` or `body` to arrive, `response` to be read by the client, or `work` of the server."""
        idle = self.cycle is None or self.cycle.response_complete
        closing = self.transport.is_closing()
        if self.flow.write_paused or (self.transport.get_write_buffer_size() and (idle or closing)):
            return "response"
        if closing or not (idle or self.cycle.more_body) or self.flow.read_paused:
            return "work"
        return "request" if idle else "work" if self.cycle.waiting_for_100_continue else "body"

    def _start_window(self) -> None:
        self._before = self._progress()
        self._timer = self.loop.call_later(self.limits.seconds, self._end_window)

    def _progress(self) -> tuple[tuple[Any, ...], int, int]:
        return (
            (self.stage, id(self.cycle), self.drained),
            self.received,
            self.transport.get_write_buffer_size(),
        )

    def _end_window(self) -> None:
        (key, received, unread), (key_before, received_before, unread_before) = self._progress(), self._before
        stage, received = key[0], received - received_before
        enough = (
            unread < unread_before
            if stage == "response"
            else received >= self.limits.rate * self.limits.seconds
        )
        if key != key_before or stage == "work" or enough:
            self._start_window()
        elif stage == "response":
            log_problem("slow", f"{self.address} did not read its response: closed")
            self.transport.abort()
        elif stage == "request" and not received:
            self.transport.close()
        else:
            log_problem("slow", f"{self.address} was too slow with a request: closed")
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            response = error_response(
                status, REASONS.get(status, "not a valid HTTP request"), {"Connection": "close"}
            )
            start = h11.Response(
                status_code=status, headers=response.raw_headers, reason=STATUS_PHRASES[status]
            )
            for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _make_room(self) -> None:
        """Close an eighth of the connections: the busiest address's oldest that wait for a request."""
        waiting = [c for c in self.connections if isinstance(c, Connection) and c.stage == "request"]
        count = Counter(connection.address for connection in waiting)
        waiting.sort(key=lambda connection: (-count[connection.address], connection.opened))
        for connection in waiting[: max(1, len(self.connections) // 8)]:
            self.connections.discard(connection)  # now: others may come before it is lost
            connection.transport.abort()
        log_problem(
            "full",
            f"over {self.limits.connections} connections: the oldest of {waiting[0].address} are closed",
        )
