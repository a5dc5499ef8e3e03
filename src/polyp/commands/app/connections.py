"""A uvicorn server that limits slow clients and the number of connections."""

import asyncio
import sys
from collections import Counter
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from polyp.commands.app.security import error_response, log_problem
from polyp.errors import printable

REASONS = {408: "the request did not arrive in time", 431: "the request's headers are too large"}


class Connection(H11Protocol):
    """A connection that is closed when its client is too slow.

    Attributes:
        WINDOW: seconds in which a client must send `RATE` bytes per second, or read part of a response.
        RATE: bytes per second.
        CONNECTIONS: the largest number; above, connections that wait for a request are closed.
    """

    WINDOW, RATE, CONNECTIONS = 10.0, 500, 512

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the first window; close other connections if there are too many."""
        super().connection_made(cast(asyncio.Transport, transport))
        self.opened, self.received, self.drained = self.loop.time(), 0, 0
        self._start_window()
        if len(self.connections) > self.CONNECTIONS:
            self._close_oldest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives."""
        self.received += len(data)
        super().data_received(data)

    def resume_writing(self) -> None:
        """Note that the client has read most of the response so far."""
        self.drained += 1
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Respond to a request that h11 cannot parse; uvicorn calls this while it handles h11's error."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        log_problem("http", f"{self.address} sent an invalid HTTP request ({status})")
        self._refuse(status if status in STATUS_PHRASES else 400)

    @property
    def address(self) -> str:
        """The client's address."""
        return printable(self.client[0]) if self.client else "a client"

    @property
    def stage(self) -> str:
        """What the connection waits for: a `request` or its `body`, the client to read the `response`, or the
        `work` of the server.
        """
        idle = self.cycle is None or self.cycle.response_complete
        closing = self.transport.is_closing()
        if self.flow.write_paused or (self.transport.get_write_buffer_size() and (idle or closing)):
            return "response"
        if closing or not (idle or self.cycle.more_body) or self.flow.read_paused:
            return "work"
        return "request" if idle else "work" if self.cycle.waiting_for_100_continue else "body"

    def _start_window(self) -> None:
        self._start_state = self.stage, id(self.cycle), self.drained
        self._start_received, self._start_unread = self.received, self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(self.WINDOW, self._end_window)

    def _end_window(self) -> None:
        stage, received = self.stage, self.received - self._start_received
        is_fast = received >= self.RATE * self.WINDOW
        if stage == "response":
            is_fast = self.transport.get_write_buffer_size() < self._start_unread
        if is_fast or stage == "work" or (stage, id(self.cycle), self.drained) != self._start_state:
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
            reason = REASONS.get(status, "not a valid HTTP request")
            response = error_response(status, reason, {"Connection": "close"})
            phrase, headers = STATUS_PHRASES[status], response.raw_headers
            head = h11.Response(status_code=status, headers=headers, reason=phrase)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _close_oldest(self) -> None:
        """Close an eighth of the connections, of those that wait for a request: the oldest of the address
        with most.
        """
        idle = [c for c in self.connections if isinstance(c, Connection) and c.stage == "request"]
        counts = Counter(connection.address for connection in idle)
        idle.sort(key=lambda connection: (-counts[connection.address], connection.opened))
        for connection in idle[: max(1, len(self.connections) // 8)]:
            self.connections.discard(connection)  # at once, so that new connections do not count it
            connection.transport.abort()
        address = idle[0].address
        log_problem("full", f"over {self.CONNECTIONS} connections: the oldest of {address} are closed")


def make_server(app: ASGIApp, connection: type[Connection] = Connection) -> uvicorn.Server:
    """A server of the application, whose `run` takes the sockets to listen on."""
    config = uvicorn.Config(
        cast(Any, app),
        http=connection,
        ws="none",
        log_level="critical",  # errors are logged by `security.handle_exception`
        access_log=False,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    return uvicorn.Server(config)
