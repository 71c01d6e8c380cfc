"""Cuts one direction of a vhost-user socket into the messages that a recording has, whether they are valid or not.

Only the 12 bytes of a header are understood. So a recording also has what the receiver refuses.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from protocol.message_limits import PAYLOAD_MAX
from protocol.recording.records import FileFact, Noise, WireMessage
from protocol.vhost_user import HEADER, HEADER_SIZE, VERSION, VERSION_MASK
from protocol.vhost_user_codec import Channel

NOISE_MAX: Final = 4096
"""Most bytes in one piece of what is not a message."""


class RecordedStream:
    """The messages of ``stream`` in session ``session``. Descriptors belong to the message that is not complete."""

    def __init__(self, session: int, stream: Channel) -> None:
        self._session = session
        self._stream = stream
        self._buffer = bytearray()
        self._files: list[FileFact] = []
        self._lost = False

    def feed(self, now: float, data: bytes, files: Sequence[FileFact] = ()) -> Iterator[WireMessage | Noise]:
        """Take the next bytes and what came with them at ``now`` (CLOCK_MONOTONIC, seconds); yield what is whole."""
        self._buffer += data
        self._files += files
        while not self._lost and len(self._buffer) >= HEADER_SIZE:
            header = HEADER.parse(bytes(self._buffer[:HEADER_SIZE]))
            if header.flags & VERSION_MASK != VERSION or header.size > PAYLOAD_MAX:
                self._lost = True  # where the next message begins is unknown
                break
            end = HEADER_SIZE + header.size
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[HEADER_SIZE:end])
            del self._buffer[:end]
            yield WireMessage(
                t=now,
                session=self._session,
                stream=self._stream,
                request=header.request,
                flags=header.flags,
                payload=payload,
                files=self._take_files(),
            )
        if self._lost:
            yield from self.flush(now)

    def flush(self, now: float) -> Iterator[Noise]:
        """Yield what is there of a message that did not become whole."""
        while self._buffer or self._files:
            data = bytes(self._buffer[:NOISE_MAX])
            del self._buffer[:NOISE_MAX]
            yield Noise(t=now, session=self._session, stream=self._stream, data=data, files=self._take_files())

    def _take_files(self) -> tuple[FileFact, ...]:
        files = tuple(self._files)
        self._files.clear()
        return files
