"""The control socket: QMP for several clients at once.

The commands of one client are carried out one after another, those of different clients concurrently. At most
``UNREAD_MAX`` bytes are buffered for a client: one that does not read is disconnected, and delays no other.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from host.control.latest_value import LatestValue
from host.qmp.qmp import QmpError, QmpSession, Request, build_error, build_event, build_greeting
from protocol.errors import FramingError
from protocol.process.accept_loop import AcceptLoop, abort_stream, open_streams
from protocol.process.listening_socket import ListeningSocket

log = logging.getLogger(__name__)

CLIENTS_MAX: Final = 32
UNREAD_MAX: Final = 1 << 20
"""Bytes that may wait for one client to read them."""
SEND_TIMEOUT: Final = 10.0
"""Seconds that a client may take to read enough that the next answer fits into the buffer."""
BALLOON_CHANGE_INTERVAL: Final = 1.0
"""Least seconds between two BALLOON_CHANGE events of one virtual machine, as in QEMU."""

_CHUNK: Final = 1 << 16

Perform = Callable[[Request], Awaitable[bytes]]


class _Client:
    """One connected client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, perform: Perform) -> None:
        self._reader = reader
        self._writer = writer
        self._perform = perform
        self._session = QmpSession()

    async def serve(self, greeting: bytes) -> None:
        """Serve the client until it disconnects or is disconnected."""
        try:
            # A client may disconnect at any time.
            with contextlib.suppress(OSError, TimeoutError):
                await self._converse(greeting)
                self._writer.close()
                async with asyncio.timeout(SEND_TIMEOUT):
                    await self._writer.wait_closed()
        finally:
            self.abort()  # without effect after close()

    async def _converse(self, greeting: bytes) -> None:
        try:
            await self._send(greeting)
            while data := await self._reader.read(_CHUNK):
                self._session.feed(data)
                await self._answer_all()
        except FramingError as error:
            await self._send(build_error(QmpError(str(error)), {}))

    async def _answer_all(self) -> None:
        while (step := self._session.next_step()) is not None:
            await self._send(await self._perform(step) if isinstance(step, Request) else step)
            await asyncio.sleep(0)  # yield: a thousand commands sent at once must not stall the guests

    async def _send(self, line: bytes) -> None:
        self._writer.write(line)
        async with asyncio.timeout(SEND_TIMEOUT):
            await self._writer.drain()

    def notify(self, line: bytes) -> None:
        """Send an event, if the client has negotiated capabilities. Disconnect it if it does not read.

        A client that has disconnected is skipped: it is still listed while its last command is carried out.
        """
        if not self._session.negotiated or self._writer.transport.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > UNREAD_MAX:
            log.info("a client of the control socket does not read: disconnected")
            self.abort()
            return
        self._writer.write(line)

    def abort(self) -> None:
        """Close the connection at once and discard what the client has not read."""
        abort_stream(self._writer)


class ControlServer:
    """Serves clients of one listening socket from :meth:`start` to :meth:`close`."""

    def __init__(self, listener: ListeningSocket, perform: Perform, version: Mapping[str, Any]) -> None:
        self._listener = listener
        self._perform = perform
        self._greeting = build_greeting(version)
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._accepting: AcceptLoop | None = None
        self._balloons: dict[int, LatestValue[int]] = {}

    async def start(self) -> None:
        """Accept clients from now on."""
        self._accepting = AcceptLoop(self._listener.socket, "a client of the control socket", self._on_accept)
        self._accepting.start()

    def _on_accept(self, sock: socket.socket) -> None:
        task = asyncio.create_task(self._open(sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket) -> None:
        if (streams := await open_streams(sock, _CHUNK)) is not None:
            self._on_connected(*streams)

    async def close(self) -> None:
        """Stop listening and disconnect all clients; commands under way are cancelled."""
        for balloon in self._balloons.values():
            balloon.close()
        if self._accepting is not None and not self._listener.closed:
            self._accepting.stop()
        for opening in tuple(self._opening):
            opening.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        clients = dict(self._clients)
        for task, client in clients.items():
            task.cancel()
            client.abort()
        await asyncio.gather(*clients, return_exceptions=True)
        self._listener.close()

    def _on_connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: asyncio would keep the tasks of clients to itself, and close() could not end them.
        if len(self._clients) >= CLIENTS_MAX:
            writer.write(build_error(QmpError(f"there are {CLIENTS_MAX} clients already"), {}))
            writer.close()
            return
        client = _Client(reader, writer, self._perform)
        task = asyncio.create_task(client.serve(self._greeting), name="control client")
        self._clients[task] = client
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of the daemon disconnects this client only.
            log.error("control socket: internal error", exc_info=error)
            client.abort()

    def emit(self, event: str, data: Mapping[str, Any]) -> None:
        """Send an event to every client."""
        if self._clients:
            line = build_event(event, data, time.time_ns())
            for client in tuple(self._clients.values()):
                client.notify(line)

    def balloon_changed(self, vm: int, logical_bytes: int) -> None:
        """Take note of a new balloon size, which leaves the guest ``logical_bytes``: it becomes an event."""
        if vm not in self._balloons:

            def send(value: int) -> None:
                self.emit("BALLOON_CHANGE", {"actual": value, "vm": vm})

            self._balloons[vm] = LatestValue(BALLOON_CHANGE_INTERVAL, send)
        self._balloons[vm].change(logical_bytes)

    def forget(self, vm: int) -> None:
        """Take note that a virtual machine has gone: an event that is due for it is discarded."""
        if (balloon := self._balloons.pop(vm, None)) is not None:
            balloon.close()
