"""The process at the other end of a session: who it is, when it has gone, and what it may leave behind then.

A session ends when the last copy of the front-end's end of its socket is closed. A front-end can put such a copy into
the receive queue of a socket that it gives as a call, error or kick descriptor (SCM_RIGHTS), and exit: the daemon's own
descriptor then keeps the queue, the queue keeps the copy, and the session would never end. So once the process has gone
these queues are emptied (:class:`LeftBehind`). The daemon reads nothing in them, hence a session goes on unharmed
whose process only made the connection for another one.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Container, Sequence
from typing import Final, NoReturn

from host.descriptors.socket_read import until_ready
from host.peers.helpers import Helpers
from host.ring.queue_files import QueueFiles
from protocol.process.peer_process import peer_process

DRAIN_INTERVAL: Final = 1.0
"""Seconds between looks at the queues while the session goes on. A child may hide the connection later."""

_SO_PEERPIDFD: Final = 77
"""Socket option (Linux 6.5): a pidfd of the peer. Python has no name for it."""


class FrontEndProcess:
    """The process that connected, as the kernel recorded it then."""

    def __init__(self, sock: socket.socket) -> None:
        peer = peer_process(sock)
        self.pid = peer.pid
        """Its number, 0 if it is in another pid namespace. Still known when it has gone."""
        self.uid = peer.uid
        """Its user."""
        self._pidfd = _open_pidfd(sock, peer.pid)

    async def gone(self) -> None:
        """Return when it has gone, at once where that cannot be known."""
        if self._pidfd is None:
            return
        loop = asyncio.get_running_loop()
        try:
            await until_ready(self._pidfd, loop.add_reader, loop.remove_reader)
        except OSError:  # too many watches
            return

    def close(self) -> None:
        """Close what watches it."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _open_pidfd(sock: socket.socket, pid: int) -> int | None:
    # The socket's own option works across pid namespaces, and never names a later process with the same number.
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        pass
    try:
        return os.pidfd_open(pid)
    except OSError:  # it has gone, or is in another pid namespace, or no descriptor is left, or Linux before 5.3
        return None


class LeftBehind:
    """Empties the sockets of ``queues`` that are not read otherwise, once ``process`` has gone.

    ``served`` has the numbers of the queues whose kicks are read. Under ``lock`` it does not grow, and no descriptor of
    a queue is closed. A read runs on one of the peer's ``helpers``, and may go on when its session has ended: until
    :meth:`close` returns.
    """

    def __init__(
        self,
        process: FrontEndProcess,
        queues: Sequence[QueueFiles],
        served: Container[int],
        lock: asyncio.Lock,
        helpers: Helpers,
    ) -> None:
        self._process = process
        self._queues = queues
        self._served = served
        self._lock = lock
        self._helpers = helpers
        self._loop = asyncio.get_running_loop()
        self._drained: asyncio.Future[None] | None = None

    async def empty(self) -> NoReturn:
        """Wait for the end of the process, then empty the sockets again and again."""
        await self._process.gone()
        while True:
            async with self._lock:
                await self._empty_once()
            await asyncio.sleep(DRAIN_INTERVAL)

    async def close(self) -> None:
        """Return when no socket is being read."""
        self._process.close()
        if self._drained is not None:
            await asyncio.shield(self._drained)

    async def _empty_once(self) -> None:
        files = [
            file
            for index, queue in enumerate(self._queues)
            for file in queue.unread(served=index in self._served)
            if file.has_unread()
        ]
        if not files:
            return
        drained = self._drained = self._loop.create_future()

        def drain_all() -> None:
            try:
                for file in files:
                    file.drain()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                    self._loop.call_soon_threadsafe(drained.set_result, None)

        self._helpers.close_by(drain_all)
        await asyncio.shield(drained)
