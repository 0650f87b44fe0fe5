"""Bounds of what requests may take: bytes and seconds of a body, requests at once, headers.

What is refused gets a status and a sentence: 408 too slow, 413 too large, 503 too many at once.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

RETRY_AFTER = "1"  # seconds, in answers of status 503
HEAD_SECONDS = 15.0  # for the headers of a request


def busy(what: str) -> HTTPException:
    """Make the answer to a request that is one too many."""
    return HTTPException(503, f"{what}; try again", {"Retry-After": RETRY_AFTER})


class Slots:
    """A number of requests of one kind at once; one more is refused, and does not wait."""

    def __init__(self, count: int, what: str) -> None:
        self._free, self._what = count, what

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold a slot during the block."""
        if self._free == 0:
            raise busy(f"too many {self._what} at once")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


class Bodies:
    """Reading of the bodies of requests, with a bound for each and for all of them at once.

    Parameters
    ----------
    largest : bytes of one body
    seconds : in which a body must have arrived
    room : bytes of all bodies that are held at once
    """

    def __init__(self, largest: int, seconds: float, room: int) -> None:
        self._largest, self._seconds, self._room = largest, seconds, room

    @asynccontextmanager
    async def held(self, request: Request) -> AsyncIterator[bytes]:
        """Read a body as it arrives, and hold its bytes during the block."""
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and int(announced) > self._largest:
            raise self._too_large()
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in request.stream():
                        if len(body) + len(chunk) > self._largest:
                            raise self._too_large()
                        if len(chunk) > self._room:
                            raise busy("too many photos at once")
                        self._room -= len(chunk)
                        body += chunk
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the body did not arrive within {self._seconds:g} s", _CLOSE
                ) from error
            except ClientDisconnect as error:
                raise HTTPException(400, "the client has gone", _CLOSE) from error
            yield bytes(body)
        finally:
            self._room += len(body)

    def _too_large(self) -> HTTPException:
        limit = f"{self._largest / (1 << 20):g} MiB"
        return HTTPException(413, f"the body is larger than {limit}; send a smaller photo", _CLOSE)


_CLOSE = {"Connection": "close"}  # the rest of the body is not read


class HeadTimeoutProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, which waits only so long for the headers of a request.

    uvicorn itself stops its clock with the first byte of a request, so that a client could hold a
    connection by sending a header a minute.
    """

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_head()

    def _watch_head(self) -> None:
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._forget_head()
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
