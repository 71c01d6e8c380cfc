"""Accepts connections on the event loop, also while the process has no descriptor left for them.

asyncio's own servers write a traceback each time that accept fails, thousands a second.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

ACCEPT_RETRY: Final = 1.0
"""Seconds between two tries to accept while the process has no descriptor or no memory left."""

_SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class AcceptLoop:
    """Accepts on ``listener``, which stays the caller's, from :meth:`start` to :meth:`stop`.

    ``on_accept`` is called with each connection, which it then owns. ``what`` names what connects, for the log.
    """

    def __init__(self, listener: socket.socket, what: str, on_accept: Callable[[socket.socket], None]) -> None:
        self._listener = listener
        self._what = what
        self._on_accept = on_accept
        self._later: asyncio.TimerHandle | None = None
        self._is_short = False

    def start(self) -> None:
        """Accept from now on."""
        self._listener.setblocking(False)
        self._watch()

    def stop(self) -> None:
        """Accept no more. Call it before the listener is closed."""
        if self._later is not None:
            self._later.cancel()
        asyncio.get_running_loop().remove_reader(self._listener.fileno())

    def _watch(self) -> None:
        self._later = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _SHORT:
                self._wait(error)
            return  # else no peer waits, or it has gone again
        self._is_short = False
        self._on_accept(sock)

    def _wait(self, error: OSError) -> None:
        # The peer stays in the backlog, so the socket stays readable: look again later, do not spin.
        if not self._is_short:  # once for each shortage
            log.warning("cannot accept %s: %s", self._what, error.strerror)
        self._is_short = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._later = loop.call_later(ACCEPT_RETRY, self._watch)


async def open_streams(sock: socket.socket, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Return streams of an accepted connection, which own it; None if it has gone again."""
    with contextlib.suppress(OSError):
        if sock.family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(sock=sock, limit=limit)
        return await asyncio.open_connection(sock=sock, limit=limit)
    sock.close()
    return None


def abort_stream(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once, and discard what its peer has not read. On a closed one this has no effect."""
    # A transport that had data left when it was closed has forgotten its loop since (_force_close() in
    # asyncio/selector_events.py).
    with contextlib.suppress(AttributeError):
        writer.transport.abort()
