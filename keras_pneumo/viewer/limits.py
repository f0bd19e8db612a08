"""Limits of the page's server on connections, bytes in flight and time.

Every program of this machine can open connections to the page's port, and a browser can send many files at once. So
there are few connections, and those that keep the server waiting end (:class:`LimitedProtocol`); few radiographs are in
memory at a time, and few wait for that (:class:`Turns`); and the body of a request has a size and a time
(:func:`body_of`). uvicorn has settings for some of this (:data:`SETTINGS`), but none for a client that stays silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 64
"""Connections that are held; a browser opens six. One more ends the one that has been without a request for longest."""

HEAD_SECONDS = 10.0
"""Longest that a connection may be without a whole request line and headers, from its start or the last response."""

BODY_SECONDS = 60.0
"""Longest that the body of a request may take; on one machine the largest takes a second."""

SEND_SECONDS = 30.0
"""Longest that a client may leave a piece of a response unread."""

PIECE = 2**18
"""Bytes of a response that are handed on at a time, so that a client that does not read costs no more."""

AT_ONCE = 2
"""Radiographs in memory at a time: one is decoded or answered while the next one arrives."""

WAITING = 8
"""Requests that may wait for their turn; the page itself sends two."""

WAIT_SECONDS = 60.0
"""Longest that a request waits for its turn, the time limit of one file."""

RETRY_SECONDS = 2
"""After so many seconds a client that was told to wait may ask again; the page does."""

BUSY = "The page is busy with other radiographs. Wait a few seconds, then open this one again."

SETTINGS: dict[str, Any] = {
    # Reached only when every connection has a request: uvicorn then answers 503 itself.
    "limit_concurrency": CONNECTIONS + 1,
    "backlog": 2 * CONNECTIONS,  # as many are accepted before the oldest can be ended: it bounds open files
    "timeout_keep_alive": 5,
    "h11_max_incomplete_event_size": 2**15,
    "ws": "none",
}
"""uvicorn's own limits."""


class BusyError(Exception):
    """Too many radiographs wait already, or this one has waited too long."""


class TooLargeError(Exception):
    """The body of a request is larger than is read."""


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with ends for connections that keep it waiting, and for the oldest of too many."""

    def __init__(self, *given: Any, **named: Any) -> None:
        """As uvicorn calls it, for each connection."""
        super().__init__(*given, **named)
        self.idle_since = 0.0
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no request of this connection is being received or answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Count the connection; above :data:`CONNECTIONS` end the oldest idle one."""
        super().connection_made(transport)
        self._wait_for_head()
        while len(self.connections) > CONNECTIONS:
            idle = [
                each
                for each in self.connections
                if isinstance(each, LimitedProtocol) and each.is_idle and each is not self
            ]
            if not idle:
                break
            min(idle, key=lambda each: each.idle_since).end()

    def data_received(self, data: bytes) -> None:
        """Parse what came; a whole head ends the wait for it."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop("head")

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it was sent along."""
        super().on_response_complete()
        if self.is_idle:
            self._wait_for_head()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to: give it :data:`SEND_SECONDS`."""
        super().pause_writing()
        self._start("send", SEND_SECONDS)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._stop("send")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        super().connection_lost(exc)
        self._stop("head")
        self._stop("send")

    def end(self) -> None:
        """End the connection at once, whatever is still to be sent."""
        self.connections.discard(self)
        self.transport.abort()

    def _wait_for_head(self) -> None:
        self.idle_since = time.monotonic()
        self._start("head", HEAD_SECONDS)

    def _start(self, timer: str, seconds: float) -> None:
        self._stop(timer)
        self._timers[timer] = self.loop.call_later(seconds, self.end)

    def _stop(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()


class Turns:
    """Lets :data:`AT_ONCE` radiographs into memory at a time; :data:`WAITING` others wait in line."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._free = asyncio.Semaphore(AT_ONCE)
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A context in which a radiograph may be in memory; it begins when it is this one's turn.

        Raises:
            BusyError: the line is full, or the turn did not come within :data:`WAIT_SECONDS`.
        """
        if self._free.locked() and self.waiting >= WAITING:
            raise BusyError
        self.waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise BusyError from None
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free.release()


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request, of at most so many bytes.

    Raises:
        TooLargeError: it has more, or says so.
        TimeoutError: it was not there within :data:`BODY_SECONDS`.
        ClientDisconnect: the client has gone before its end.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise TooLargeError
    data = bytearray()
    async with asyncio.timeout(BODY_SECONDS):
        async for piece in request.stream():
            data += piece
            if len(data) > most:
                raise TooLargeError
    return bytes(data)


class PiecewiseResponse(Response):
    """A response that is handed on in pieces of :data:`PIECE` bytes, as the client reads them."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the head, then one piece after another."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self.body), PIECE):
            await send(
                {"type": "http.response.body", "body": bytes(self.body[start : start + PIECE]), "more_body": True}
            )
        await send({"type": "http.response.body", "body": b""})
