"""A vhost-user stream cut into messages and nothing more: whatever its bytes are, the pieces together are the stream.

:class:`protocol.vhost_user_codec.MessageReader` refuses what is wrong. A proxy passes it on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from protocol.vhost_user import HEADER_SIZE, BackendRequest, FrontendRequest, form_of
from protocol.vhost_user_codec import Channel
from protocol.vhost_user_payloads import VRING_ADDRESS, VRING_FILE, VRING_STATE, PayloadForm

PAYLOAD_MAX: Final = 1 << 20
"""A header with a larger size is taken for a stream out of step: its bytes are passed on as they come."""

NO_FILE: Final = 0x100
"""In the payload of a vring file message: no descriptor comes along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The bytes of one message, header included, and its files; or bytes of a stream that is out of step.

    A file is whatever stands for a received descriptor.
    """

    channel: Channel
    data: bytes
    files: tuple[object, ...] = ()
    is_message: bool = True

    @property
    def request(self) -> int:
        """The request's number."""
        return int.from_bytes(self.data[:4], "little")

    @property
    def payload(self) -> bytes:
        """What follows the header."""
        return self.data[HEADER_SIZE:]

    @property
    def queue(self) -> int | None:
        """The queue that the message is about; None for one that is about no queue, or too short."""
        form = payload_form(self.channel, self.request)
        if form is VRING_FILE and len(self.payload) >= 8:
            return int.from_bytes(self.payload[:8], "little") & ~NO_FILE
        if form in (VRING_STATE, VRING_ADDRESS) and len(self.payload) >= 4:
            return int.from_bytes(self.payload[:4], "little")
        return None


def payload_form(channel: Channel, request: int) -> PayloadForm | None:
    """Return the form of the payload of a message of ``channel``, None without one or if the request is unknown."""
    requests = FrontendRequest if channel in (Channel.FRONTEND_REQUESTS, Channel.BACKEND_REPLIES) else BackendRequest
    try:
        form = form_of(requests(request))
    except ValueError:
        return None
    return form.reply if channel.carries_replies else form.payload


def request_name(channel: Channel, request: int) -> str:
    """Return the name of a request, its number if it is unknown."""
    requests = FrontendRequest if channel in (Channel.FRONTEND_REQUESTS, Channel.BACKEND_REPLIES) else BackendRequest
    return requests(request).name if request in tuple(requests) else str(request)


class MessageCutter:
    """Cuts one stream. Feed it no more than :meth:`bytes_desired` where descriptors may come with the bytes."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray()
        self._files: list[object] = []
        self._in_step = True

    def bytes_desired(self) -> int:
        """Return how many bytes may be read without passing the end of the current message. Never zero."""
        if not self._in_step:
            return PAYLOAD_MAX
        if len(self._buffer) < HEADER_SIZE:
            return HEADER_SIZE - len(self._buffer)
        return HEADER_SIZE + self._size() - len(self._buffer)

    def feed(self, data: bytes, files: Iterable[object] = ()) -> Iterator[Piece]:
        """Take the next bytes and their files; yield the pieces that are whole now."""
        self._buffer += data
        self._files += files
        while self._in_step and len(self._buffer) >= HEADER_SIZE:
            size = self._size()
            if size > PAYLOAD_MAX:
                self._in_step = False
            elif len(self._buffer) < HEADER_SIZE + size:
                return
            else:
                yield self._take(HEADER_SIZE + size, is_message=True)
        if not self._in_step:
            yield from self.rest()

    def rest(self) -> Iterator[Piece]:
        """Yield what is left at the end of the stream."""
        if self._buffer:
            yield self._take(len(self._buffer), is_message=False)

    def _take(self, length: int, *, is_message: bool) -> Piece:
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        files, self._files = tuple(self._files), []
        return Piece(channel=self._channel, data=data, files=files, is_message=is_message)

    def _size(self) -> int:
        return int.from_bytes(self._buffer[8:12], "little")
