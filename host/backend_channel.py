"""The channel for the back-end's own requests. The daemon never blocks on it.

The front-end may at this moment be waiting for us on the other socket, so requests are sent without asking for an
acknowledgement, and answers are discarded, their descriptors by the peer's helpers. A request that finds the channel
full is queued until there is room. A request that is already queued is not queued again: each asks the front-end to
read a state, and one read serves all.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

from host.descriptors.received_file import FileKind, kind_at_once
from host.descriptors.socket_read import receive_bytes
from host.peers.helpers import Helpers
from host.recording.session_recording import NOT_RECORDED, SessionRecording
from protocol.errors import VhostUserError
from protocol.vhost_user_codec import Channel


class BackendChannel:
    """Sends requests from any thread. Owns the descriptor from when the constructor has returned.

    ``on_gone`` is called on the event loop when the front-end has closed its end.
    """

    def __init__(
        self,
        fd: int,
        on_gone: Callable[[], None],
        helpers: Helpers,
        recording: SessionRecording = NOT_RECORDED,
    ) -> None:
        """Take ``fd``.

        Raises:
            VhostUserError: it is not a unix stream socket.
        """
        if kind_at_once(fd) is not FileKind.SOCKET:
            raise VhostUserError("the back-end channel is not a unix stream socket")
        self._socket = socket.socket(fileno=fd)
        self._helpers = helpers
        self._on_gone = on_gone
        self._recording = recording
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: dict[bytes, None] = {}
        self._rest = b""
        self._closed = False
        self._loop.add_reader(fd, self._drain)

    @property
    def fd(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def send(self, request: bytes) -> None:
        """Send the bytes of one request as soon as there is room, from any thread."""
        with self._lock:
            if self._closed:
                return
            if request not in self._waiting:
                self._recording.passed(Channel.BACKEND_REQUESTS, request)
            self._waiting[request] = None
            sent = self._flush()
        if not sent:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                self._loop.call_soon_threadsafe(self._wait_for_room)

    def close(self) -> None:
        """Close the channel. On the event loop."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._helpers.close_by(self._socket.close)

    def _flush(self) -> bool:
        # Under the lock. Returns whether the queue is empty; it is emptied when the front-end is gone.
        try:
            while self._rest or self._waiting:
                if not self._rest:
                    self._rest = next(iter(self._waiting))
                    del self._waiting[self._rest]
                sent = self._socket.send(self._rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self._rest = self._rest[sent:]
        except BlockingIOError:
            return False
        except OSError:
            self._rest = b""
            self._waiting.clear()
        return True

    def _wait_for_room(self) -> None:
        with self._lock:
            if not self._closed:
                self._loop.add_writer(self._socket.fileno(), self._on_room)

    def _on_room(self) -> None:
        with self._lock:
            if not self._closed and self._flush():
                self._loop.remove_writer(self._socket.fileno())

    def _drain(self) -> None:
        try:
            data = receive_bytes(self._socket, 4096, self._helpers.close)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._recording.passed(Channel.FRONTEND_REPLIES, data)
        if not data:
            self.close()
            self._on_gone()
