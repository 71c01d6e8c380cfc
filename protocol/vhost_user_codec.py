"""vhost-user messages from and to bytes, which may arrive in pieces of any length.

A :class:`MessageReader` is fed bytes and received file descriptors and returns whole messages. The caller that takes a
message owns its file descriptors and must close them.

Source: vhost-user specification, "Header" and "Ancillary data": file descriptors ride on the first byte of a header.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import Final

from construct import ConstructError, SizeofError

from protocol.errors import FramingError, VhostUserError
from protocol.message_limits import FDS_MAX, PAYLOAD_MAX
from protocol.vhost_user import (
    HEADER,
    HEADER_SIZE,
    VERSION,
    VERSION_MASK,
    BackendRequest,
    FrontendRequest,
    HeaderFlag,
    Request,
    form_of,
)
from protocol.vhost_user_payloads import U64, MemoryTable, Payload, PayloadForm, VringFile


class Channel(Enum):
    """Which of the four streams between two processes is being read; it decides what a number in a header means."""

    FRONTEND_REQUESTS = "front-end requests"
    BACKEND_REPLIES = "back-end replies"
    BACKEND_REQUESTS = "back-end requests"
    FRONTEND_REPLIES = "front-end replies"

    @property
    def carries_replies(self) -> bool:
        """Whether every message of the stream is a reply."""
        return self in (Channel.BACKEND_REPLIES, Channel.FRONTEND_REPLIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One whole, valid message. ``fds`` are descriptor numbers, which the caller must close."""

    request: Request
    payload: Payload = None
    need_reply: bool = False
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BadMessage:
    """One invalid message of known length. The stream continues after it.

    ``request`` is the number from the header, known or not, and ``error`` says what is wrong. The caller must close
    ``fds``.
    """

    request: int
    need_reply: bool
    fds: tuple[int, ...]
    error: VhostUserError


@dataclass(frozen=True, slots=True)
class _Header:
    request: int
    flags: int
    size: int


_REQUEST_OF: Final[dict[Channel, type[FrontendRequest] | type[BackendRequest]]] = {
    Channel.FRONTEND_REQUESTS: FrontendRequest,
    Channel.BACKEND_REPLIES: FrontendRequest,
    Channel.BACKEND_REQUESTS: BackendRequest,
    Channel.FRONTEND_REPLIES: BackendRequest,
}


def build_message(request: Request, payload: Payload = None, *, need_reply: bool = False) -> bytes:
    """Return the bytes of a request."""
    form = form_of(request).payload
    flags = VERSION | (HeaderFlag.NEED_REPLY if need_reply else 0)
    return _build(request, flags, b"" if form is None else build_payload(form, payload))


@lru_cache(maxsize=64)
def build_ack(request: int, status: int) -> bytes:
    """Return the bytes of the acknowledgement of ``request`` that REPLY_ACK adds: ``status`` 0 for success."""
    return _build(request, VERSION | HeaderFlag.REPLY, build_payload(U64, status))


def build_own_reply(request: Request, payload: Payload) -> bytes:
    """Return the bytes of the reply that ``request`` always has, with or without REPLY_ACK."""
    form = form_of(request).reply
    assert form is not None, request
    return _build(request, VERSION | HeaderFlag.REPLY, build_payload(form, payload))


def build_refusal(request: FrontendRequest) -> bytes:
    """Return the bytes of the reply of its own by which ``request`` is refused. Its form must have one."""
    refusal = form_of(request).refusal
    assert refusal is not None, request
    return _build(request, VERSION | HeaderFlag.REPLY, refusal)


def _build(request: int, flags: int, payload: bytes) -> bytes:
    # A reply's flags are exactly 0x5: QEMU and User Mode Linux compare for equality, so NEED_REPLY is never echoed.
    return bytes(HEADER.build({"request": request, "flags": flags, "size": len(payload)})) + payload


def build_payload(form: PayloadForm, payload: Payload) -> bytes:
    """Return the bytes of ``payload`` in ``form``."""
    return bytes(form.layout.build(form.to_fields(payload)))


def parse_payload(form: PayloadForm, data: bytes) -> Payload:
    """Return the value of the bytes of one whole payload.

    Raises:
        VhostUserError: too short, or longer than the form allows.
    """
    try:
        fields = form.layout.parse(data)
    except ConstructError as error:
        raise VhostUserError(f"{len(data)} bytes are too few for a {form.name} payload") from error
    value = form.to_value(fields)
    used = _fixed_size(form) or len(form.layout.build(form.to_fields(value)))
    if len(data) != used and not form.may_be_longer:
        raise VhostUserError(f"{len(data)} bytes are too many for a {form.name} payload of {used}")
    return value


@cache
def _fixed_size(form: PayloadForm) -> int | None:
    try:
        return int(form.layout.sizeof())
    except SizeofError:
        return None


class MessageReader:
    """Turns one direction of a vhost-user socket into messages.

    A caller reads like this, and so never attributes a file descriptor to the wrong message::

        data, fds = recvmsg(reader.bytes_desired())
        reader.feed(data, fds)
        while (message := reader.next_message()) is not None: ...

    File descriptors belong to the current message, the one that is not complete yet. A piece that comes with file
    descriptors must therefore not extend past that message, which :meth:`bytes_desired` guarantees. Without file
    descriptors the stream may be cut anywhere.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._header: _Header | None = None

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Take the next bytes of the stream and the file descriptors that came with them."""
        self._buffer += data
        self._fds += fds

    def bytes_desired(self) -> int:
        """Return how many bytes may be read without passing the end of the current message. Never zero."""
        if self._header is None:
            return max(1, HEADER_SIZE - len(self._buffer))
        return max(1, self._header.size - len(self._buffer))

    def rest_of_message(self, data: bytes) -> int:
        """Return how many bytes of ``data``, which were not fed yet, belong to the current message."""
        if self._header is not None:
            return min(self._header.size - len(self._buffer), len(data))
        header = bytes(self._buffer) + data[: HEADER_SIZE - len(self._buffer)]
        rest = len(header) - len(self._buffer)
        if len(header) == HEADER_SIZE and (size := HEADER.parse(header).size) <= PAYLOAD_MAX:
            rest += size
        return min(rest, len(data))

    @property
    def in_message(self) -> bool:
        """Whether part of a message was received, so that an end of file now would truncate it."""
        return self._header is not None or len(self._buffer) > 0

    @property
    def fds_waiting(self) -> int:
        """How many file descriptors belong to no message yet."""
        return len(self._fds)

    def take_fds(self) -> tuple[int, ...]:
        """Return the file descriptors that belong to no message yet: the caller closes them at the end of a session."""
        fds = tuple(self._fds)
        self._fds.clear()
        return fds

    def next_message(self) -> Message | BadMessage | None:
        """Return the next whole message, or None if more bytes are needed.

        Raises:
            FramingError: the header is invalid (version, direction, size), or more file descriptors were received than
                any message can have. The reader cannot be used afterwards.
        """
        if len(self._fds) > FDS_MAX:
            # File descriptors come with the first byte of a header. A peer that sends single bytes could add more with
            # each of them.
            raise FramingError(f"{len(self._fds)} file descriptors on one message")
        if self._header is None:
            if len(self._buffer) < HEADER_SIZE:
                return None
            self._header = self._parse_header(bytes(self._buffer[:HEADER_SIZE]))
            del self._buffer[:HEADER_SIZE]
        header = self._header
        if len(self._buffer) < header.size:
            return None
        payload = bytes(self._buffer[: header.size])
        del self._buffer[: header.size]
        fds = self.take_fds()
        self._header = None
        need_reply = bool(header.flags & HeaderFlag.NEED_REPLY)
        try:
            return self._parse(header, payload, need_reply, fds)
        except VhostUserError as error:
            return BadMessage(request=header.request, need_reply=need_reply, fds=fds, error=error)

    def _parse_header(self, data: bytes) -> _Header:
        fields = HEADER.parse(data)
        header = _Header(fields.request, fields.flags, fields.size)
        if header.flags & VERSION_MASK != VERSION:
            raise FramingError(f"message version {header.flags & VERSION_MASK} is not {VERSION}")
        if bool(header.flags & HeaderFlag.REPLY) != self._channel.carries_replies:
            raise FramingError(
                f"a {'request' if self._channel.carries_replies else 'reply'} among {self._channel.value}"
            )
        if header.size > PAYLOAD_MAX:
            raise FramingError(f"message of {header.size} bytes exceeds {PAYLOAD_MAX}")
        return header

    def _parse(self, header: _Header, data: bytes, need_reply: bool, fds: tuple[int, ...]) -> Message:
        try:
            request = _REQUEST_OF[self._channel](header.request)
        except ValueError:
            raise VhostUserError(f"unknown request {header.request}") from None
        form = form_of(request)
        if self._channel.carries_replies:
            # GET_CONFIG fails with an empty payload; every other reply without a form of its own is an acknowledgement.
            reply_form = None if not data else form.reply or U64
            return Message(request=request, payload=_parse_form(reply_form, data), fds=fds)
        payload = _parse_form(form.payload, data)
        check_fds(request, payload, len(fds))
        return Message(request=request, payload=payload, need_reply=need_reply, fds=fds)


def _parse_form(form: PayloadForm | None, data: bytes) -> Payload:
    if form is not None:
        return parse_payload(form, data)
    if data:
        raise VhostUserError(f"{len(data)} bytes of payload in a request without one")
    return None


def check_fds(request: Request, payload: Payload, count: int) -> None:
    """Raise :class:`VhostUserError` unless a request with this payload has ``count`` file descriptors."""
    allowed = form_of(request).fds
    match payload:
        case MemoryTable(regions=regions):
            allowed = range(len(regions), len(regions) + 1)
        case VringFile(has_file=has_file):
            allowed = range(1, 2) if has_file else range(1)
        case _:
            pass
    if count not in allowed:
        wanted = " or ".join(str(number) for number in allowed)
        raise VhostUserError(f"{request.name} came with {count} file descriptors instead of {wanted}")
