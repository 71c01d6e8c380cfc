"""The back-end's own requests, as the front-end answers them."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from protocol.errors import VhostUserError
from protocol.vhost_user_codec import Channel, Message, MessageReader, build_ack

_CHUNK: Final = 4096


class BackendChannel:
    """The back-end's requests on ``sock``, which it takes over: each goes to ``take``, which returns the status.

    Status 0 is success; anything else refuses. A message that cannot be understood is refused. ``on_lost`` is
    called with the reason when the stream cannot be parsed any more; its end is not an error.
    """

    def __init__(self, sock: socket.socket, take: Callable[[Message], int], on_lost: Callable[[str], None]) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.take = take
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader(Channel.BACKEND_REQUESTS)

    def watch(self) -> None:
        """Serve requests from now on."""
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # reset: the back-end left with an answer of ours unread
        if not data:
            self._loop.remove_reader(self._socket.fileno())
            return
        self._reader.feed(data)
        try:
            while (message := self._reader.next_message()) is not None:
                status = self.take(message) if isinstance(message, Message) else 1
                if message.need_reply:
                    self._socket.send(build_ack(message.request, status))
        except (VhostUserError, OSError) as error:
            self._on_lost(f"on the back-end's channel: {error}")

    def close(self) -> None:
        """Close the channel."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
