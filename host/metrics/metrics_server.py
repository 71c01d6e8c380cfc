"""Serves metrics on a socket of its own. A scrape asks what a client of the control socket would, so it tells the same.

The text is made on a thread, one scrape at a time: hundreds of guests take tens of milliseconds.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from host.metrics.address import MetricsAddress
from host.metrics.http_scrape import HEAD_MAX, answer, is_whole, refusal
from host.metrics.latency_totals import LatencyTotals
from host.metrics.sample import read_sample
from protocol.errors import BalloonError
from protocol.process.accept_loop import AcceptLoop, abort_stream, open_streams
from protocol.process.listening_socket import OWNER_ALONE, ListeningSocket

log = logging.getLogger(__name__)

CLIENTS_MAX: Final = 16
"""Connections at the same time. A further one takes the place of the oldest that has not sent its request yet; it is
closed where each has."""

PATIENCE: Final = 5.0
"""Seconds that a client may take to send its request, and again to read the answer."""

Query = Callable[[str], Awaitable[Any]]
"""Carries out a ``query-`` command of the control socket, without arguments, and returns what it returns. To
``samples`` it returns what :func:`host.metrics.sample.sample_of` makes of each entry of ``query-vms``."""


class MetricsServer:
    """Serves the metrics of what ``query`` tells from :meth:`start` to :meth:`close`."""

    def __init__(self, address: MetricsAddress, query: Query, sockets: ExitStack) -> None:
        """Listen. ``sockets`` closes the socket, and removes its file.

        Raises:
            BalloonError: the client library is not installed, or the address cannot be had.
        """
        try:
            import prometheus_client  # noqa: F401 - said now, not at the first scrape
        except ImportError:
            raise BalloonError(
                "--metrics needs prometheus_client (pip install prometheus-client; Debian: python3-prometheus-client)"
            ) from None
        self._query = query
        self._socket = listen(address, sockets)
        self._accepting: AcceptLoop | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._silent: dict[asyncio.Task[None], None] = {}  # those that have not sent their request, the oldest first
        self._lock: asyncio.Lock | None = None
        self._totals = LatencyTotals()

    @property
    def port(self) -> int:
        """The TCP port, 0 for a unix socket."""
        name = self._socket.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def start(self) -> None:
        """Accept from now on."""
        self._lock = asyncio.Lock()
        self._accepting = AcceptLoop(self._socket, "a client of the metrics", self._on_accept)
        self._accepting.start()

    async def close(self) -> None:
        """Accept no more, and end what is under way."""
        if self._accepting is not None:
            self._accepting.stop()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _on_accept(self, sock: socket.socket) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            if not self._silent:
                sock.close()
                return
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._serve(sock))
        self._clients.add(task)
        self._silent[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._silent.pop(task, None)

    async def _serve(self, sock: socket.socket) -> None:
        streams = await open_streams(sock, HEAD_MAX)
        if streams is None:
            return
        reader, writer = streams
        try:
            with contextlib.suppress(OSError, TimeoutError):  # a client may go at any time
                async with asyncio.timeout(PATIENCE):
                    head = await _read_head(reader)
                self._has_asked()
                reply = await self._answer(head)
                async with asyncio.timeout(PATIENCE):
                    writer.write(reply)
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            abort_stream(writer)

    def _has_asked(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._silent.pop(task, None)

    async def _answer(self, head: bytes) -> bytes:
        if (status := refusal(head)) is not None:
            return answer(head, status, b"the metrics are at /metrics\n")
        try:
            assert self._lock is not None
            async with self._lock:
                return answer(head, 200, await self.scrape())
        except BalloonError as error:
            return answer(head, 503, f"{error}\n".encode())
        except Exception:
            log.exception("metrics: internal error")
            return answer(head, 503, b"internal error\n")

    async def scrape(self) -> bytes:
        """Return all metrics in Prometheus's text format.

        Raises:
            BalloonError: the daemon cannot say what they are.
        """
        told = [await self._query(name) for name in ("query-status", "query-version", "samples")]
        return await asyncio.to_thread(self._text, *told)

    def _text(self, status: Mapping[str, Any], version: Mapping[str, Any], samples: Sequence[Sequence[Any]]) -> bytes:
        from host.metrics.collector import exposition  # the client library takes a tenth of a second to load

        buckets = len(status["latency-bounds"]) + 1
        readable = [sample for each in samples if (sample := read_sample(each, buckets)) is not None]
        return exposition(status, version["package"], readable, self._totals)


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    head = b""
    while not is_whole(head) and len(head) < HEAD_MAX:
        data = await reader.read(HEAD_MAX)
        if not data:
            break
        head += data
    return head


def listen(address: MetricsAddress, sockets: ExitStack) -> socket.socket:
    """Return a socket that listens at ``address``; ``sockets`` closes it.

    Raises:
        BalloonError: the address is in use, or cannot be had.
    """
    if address.path is not None:
        listener = ListeningSocket(address.path, "--metrics", OWNER_ALONE)
        sockets.callback(listener.close)
        return listener.socket
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return sockets.enter_context(socket.create_server((address.host, address.port), family=family))
    except OSError as error:
        reason = error.strerror.partition(" (")[0] if error.strerror else str(error)
        raise BalloonError(f"--metrics {address}: {reason}") from error


def open_metrics(address: MetricsAddress | None, query: Query, sockets: ExitStack) -> MetricsServer | None:
    """Return a server that listens at ``address``, None without one. Raises like :class:`MetricsServer`."""
    return None if address is None else MetricsServer(address, query, sockets)
