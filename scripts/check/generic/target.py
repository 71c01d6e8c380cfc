"""What a generic case is given: a connection to the back-end, memory, rings, and ways to send what is wrong."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol, TypeVar

from protocol.memory import PAGE_SIZE
from protocol.vhost_user import HEADER, VERSION, FrontendRequest, HeaderFlag, ProtocolFeature, form_of
from protocol.vhost_user_codec import build_payload
from protocol.vhost_user_payloads import U64, LogDescription, MemoryTable, Payload, VringFile, VringState
from protocol.virtio import PROTOCOL_FEATURES, FeatureBit, feature_mask, has_feature
from scripts.check.generic.ring import GUEST_BASE, Ring, whole
from scripts.check.generic.watched_file import WatchedPipe
from scripts.check.machine.connection import REPLY_FLAGS, FrontendConnection
from scripts.check.machine.memory_file import MIB, MemoryFile
from scripts.check.machine.message_words import in_words
from scripts.check.verdict import Failed, HungUpError, require, skip

MEMORY_BYTES: Final = 32 * MIB

LOG_BYTES: Final = (GUEST_BASE + MEMORY_BYTES) // PAGE_SIZE // 8
"""Size of a dirty log that covers the memory: a bit for each page from guest address 0."""

NEED_REPLY: Final = VERSION | HeaderFlag.NEED_REPLY

QUEUES_TRIED: Final = 4
"""Most queues that are set up at a time."""

_WANTED: Final = feature_mask(
    ProtocolFeature.MQ,
    ProtocolFeature.LOG_SHMFD,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
)
"""Protocol features that are negotiated where they are offered. None of them changes what a message means."""

Closable = TypeVar("Closable", bound="HasClose")


class HasClose(Protocol):
    """Anything that is closed at the end."""

    def close(self) -> None:
        """Close it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a back-end offers. ``queues`` and ``slots`` are 0 where it does not say."""

    features: int = 0
    protocol_features: int = 0
    queues: int = 0
    slots: int = 0

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether this protocol feature is offered."""
        return has_feature(self.protocol_features, feature)

    def offers(self, bit: FeatureBit) -> bool:
        """Whether this feature is offered."""
        return has_feature(self.features, bit)


class Connector(Protocol):
    """Makes connections to the back-end."""

    facts: Facts
    ends_with_front_end: bool

    def reconnected(self) -> FrontendConnection:
        """Return a new connection that answers. The one before has to be closed."""

    def connected(self) -> FrontendConnection:
        """Return a new connection on which nothing was sent. The one before has to be closed."""

    def second(self) -> FrontendConnection | None:
        """Return another connection beside the one that there is, None if the back-end takes none."""

    def check_survival(self, target: "Target") -> None:
        """Raise :class:`Failed` if the back-end crashed."""


class Kind(Enum):
    """How a back-end took a message that was sent with NEED_REPLY."""

    ACCEPTED = "accepted"
    """It acknowledged with 0, or gave the reply that the message has."""
    REFUSED = "refused"
    """It acknowledged with another number, or gave the reply that says error."""
    HUNG_UP = "hung up"
    SILENT = "silent"
    """It goes on, and did not answer although it had to."""
    UNHEARD = "unheard"
    """It goes on; without REPLY_ACK there is no answer."""


class Answer(NamedTuple):
    """How a message was taken; ``data`` is the payload of the reply."""

    kind: Kind
    data: bytes = b""


class Target:
    """One case's connection to the back-end and what belongs to it. All of it is closed with the case."""

    def __init__(self, backend: Connector, connection: FrontendConnection) -> None:
        self.backend = backend
        self.facts = backend.facts
        self.connection = connection
        self.protocol_features = 0
        self._stack = ExitStack()
        self._memory: MemoryFile | None = None

    def keep(self, thing: Closable) -> Closable:
        """Close ``thing`` at the end of the case; return it."""
        self._stack.callback(thing.close)
        return thing

    def keep_pipe(self, *, reading: bool = False) -> WatchedPipe:
        """Return a pipe that tells when the back-end has closed the end that it was given."""
        return self.keep(WatchedPipe(reading=reading))

    def keep_fd(self, fd: int) -> int:
        """Close a descriptor of ours at the end of the case; return it."""
        self._stack.callback(os.close, fd)
        return fd

    def close(self) -> None:
        """Close everything."""
        self.connection.close()
        self._stack.close()

    def reconnect(self) -> None:
        """Replace the connection by a new one, on which nothing is negotiated."""
        self.connection.close()
        self.connection = self.backend.reconnected()
        self.protocol_features = 0

    def need(self, *features: ProtocolFeature) -> None:
        """Raise NotExercised unless the protocol ``features`` are offered."""
        for feature in features:
            if not self.facts.has(feature):
                skip(f"the back-end does not offer {feature.name}")

    # -- negotiation ------------------------------------------------------------------------------------------------

    def negotiate(self, *, more: int = 0, without: int = 0) -> FrontendConnection:
        """Negotiate owner, protocol features and VERSION_1, the features that no device type gives a meaning to.

        ``more`` and ``without`` are protocol features besides, where they are offered.
        """
        connection = self.connection
        connection.request(FrontendRequest.SET_OWNER)
        features = self.facts.features & feature_mask(FeatureBit.VERSION_1)
        if self.facts.features & PROTOCOL_FEATURES:
            wanted = self.facts.protocol_features & (_WANTED | more) & ~without
            connection.request(FrontendRequest.SET_PROTOCOL_FEATURES, wanted)
            self.protocol_features = wanted
            features |= PROTOCOL_FEATURES
        self.do(FrontendRequest.SET_FEATURES, features)
        return connection

    def begin_again(self) -> None:
        """Negotiate, on a new connection if this one has been in use."""
        if self.protocol_features or not self.connection.is_usable():
            self.reconnect()
        self.negotiate()

    @property
    def pid(self) -> int:
        """Id of the process that listens."""
        return self.connection.peer_pid

    @property
    def features(self) -> int:
        """The features that :meth:`negotiate` accepts."""
        return self.facts.features & feature_mask(FeatureBit.VERSION_1, FeatureBit.VHOST_USER_F_PROTOCOL_FEATURES)

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether this protocol feature was negotiated."""
        return has_feature(self.protocol_features, feature)

    @property
    def acknowledges(self) -> bool:
        """Whether REPLY_ACK was negotiated."""
        return self.has(ProtocolFeature.REPLY_ACK)

    @property
    def memory(self) -> MemoryFile:
        """The memory of the machine."""
        if self._memory is None:
            self._memory = self.keep(MemoryFile(MEMORY_BYTES))
        return self._memory

    def negotiated(self, **options: int) -> FrontendConnection:
        """Negotiate (:meth:`negotiate`) and set the memory table."""
        self.negotiate(**options)
        self.set_memory()
        return self.connection

    def set_memory(self) -> None:
        """Set the memory table to the whole memory as one region."""
        self.do(FrontendRequest.SET_MEM_TABLE, MemoryTable((whole(self.memory),)), (self.memory.fd,))

    # -- what is right ----------------------------------------------------------------------------------------------

    def do(self, request: FrontendRequest, payload: Payload = None, fds: Sequence[int] = ()) -> None:
        """Send a message that has no reply of its own and has to be carried out; return when it was.

        Raises:
            Failed: the back-end refused it, or ended the connection.
        """
        try:
            if self.acknowledges:
                answer = self.connection.ask(request, payload, fds)
                require(answer == 0, f"{in_words(request, payload)} was refused (acknowledged with {answer})")
            else:
                self.connection.request(request, payload, fds)
                self.connection.number(FrontendRequest.GET_FEATURES)  # a barrier, as QEMU uses it
        except HungUpError as error:
            raise Failed(f"the back-end ended the connection on {in_words(request, payload)}") from error

    @property
    def queues(self) -> int:
        """How many queues a case sets up at most: at least 1, the first of those that there are."""
        return max(1, min(self.facts.queues, QUEUES_TRIED))

    def ring(self, index: int = 0, size: int | None = None) -> Ring:
        """Return a new, empty ring in the memory."""
        return self.keep(Ring(self.memory, index) if size is None else Ring(self.memory, index, size))

    def set_up(self, ring: Ring, base: int | None = 0) -> None:
        """Give the back-end all of a ring but its kick descriptor and the enabling. No ``base``: it is not sent."""
        self.do(FrontendRequest.SET_VRING_NUM, VringState(ring.index, ring.size))
        if base is not None:
            self.do(FrontendRequest.SET_VRING_BASE, VringState(ring.index, base))
        self.do(FrontendRequest.SET_VRING_ADDR, ring.address())
        self.do(FrontendRequest.SET_VRING_CALL, VringFile(ring.index, True), (ring.call,))

    def start(self, ring: Ring, base: int | None = 0) -> None:
        """Set a ring up and start it: kick descriptor, enable, first kick."""
        self.set_up(ring, base)
        self.do(FrontendRequest.SET_VRING_KICK, VringFile(ring.index, True), (ring.kick,))
        self.enable(ring)
        ring.kick_it()

    def enable(self, ring: Ring, on: int = 1) -> None:
        """Enable a ring, or disable it. Without protocol features a ring is always enabled."""
        if self.facts.features & PROTOCOL_FEATURES:
            self.do(FrontendRequest.SET_VRING_ENABLE, VringState(ring.index, on))

    def stop(self, ring: Ring) -> int:
        """Stop a ring; return its base."""
        state = self.connection.query(FrontendRequest.GET_VRING_BASE, VringState(ring.index, 0))
        assert isinstance(state, VringState)
        require(state.index == ring.index, f"GET_VRING_BASE of queue {ring.index} was answered for {state.index}")
        return state.num

    def set_log(self) -> int:
        """Give the back-end a dirty log for the whole memory; return its descriptor."""
        fd = self.keep_fd(os.memfd_create("balloon-check-log", os.MFD_CLOEXEC))
        os.ftruncate(fd, LOG_BYTES)
        self.connection.query(FrontendRequest.SET_LOG_BASE, LogDescription(LOG_BYTES, 0), (fd,))
        return fd

    def check_alive(self) -> None:
        """Raise :class:`Failed` unless the connection answers GET_FEATURES with the same features as ever."""
        features = self.connection.number(FrontendRequest.GET_FEATURES)
        require(
            features == self.facts.features,
            f"GET_FEATURES was answered with {features:#x}, before with {self.facts.features:#x}",
        )

    # -- what is wrong ----------------------------------------------------------------------------------------------

    def attempt(
        self, request: int, payload: Payload | bytes = None, fds: Sequence[int] = (), *, flags: int = NEED_REPLY
    ) -> Answer:
        """Send a message with NEED_REPLY, which may be wrong in any way; return how it was taken.

        Raises:
            Failed: the answer is none to this message.
        """
        data = payload if isinstance(payload, bytes) else payload_bytes(request, payload)
        header = bytes(HEADER.build({"request": request, "flags": flags, "size": len(data)}))
        return self.attempt_raw(header + data, fds)

    def attempt_raw(self, message: bytes, fds: Sequence[int] = ()) -> Answer:
        """Send one whole message as bytes; return how it was taken, as :meth:`attempt` does."""
        request = HEADER.parse(message[:12]).request
        replies = _has_reply(request, self.protocol_features)
        try:
            self.connection.send(message, fds)
            if not replies and not self.acknowledges:
                self.connection.number(FrontendRequest.GET_FEATURES)
                return Answer(Kind.UNHEARD)
            number, reply_flags, reply = self._reply_or_silence(request)
        except HungUpError:
            return Answer(Kind.HUNG_UP)
        if number < 0:
            return Answer(Kind.SILENT)
        require(number == request, f"request {request} was answered by a reply to {number}", "V-2")
        require(
            reply_flags & ~HeaderFlag.NEED_REPLY == REPLY_FLAGS,  # the case "reply-header" looks at NEED_REPLY
            f"the reply to request {request} has flags {reply_flags:#x} instead of {REPLY_FLAGS:#x}",
            "V-2",
        )
        return Answer(_kind_of(request, reply, replies=replies), reply)

    def _reply_or_silence(self, request: int) -> tuple[int, int, bytes]:
        """Return the next reply, or one to request -1 if GET_FEATURES, sent after ``request``, is answered first."""
        with suppress(HungUpError):  # it may have answered before it ended the connection
            self.connection.request(FrontendRequest.GET_FEATURES)
        reply = self.connection.raw_reply()
        if reply[0] == FrontendRequest.GET_FEATURES != request:
            return -1, 0, b""
        with suppress(HungUpError):
            self.connection.reply_to(FrontendRequest.GET_FEATURES)
        return reply


def payload_bytes(request: int, payload: Payload) -> bytes:
    """Return the bytes of a request's payload."""
    form = form_of(FrontendRequest(request)).payload if payload is not None else None
    return b"" if form is None else build_payload(form, payload)


def _has_reply(request: int, protocol_features: int) -> bool:
    try:
        form = form_of(FrontendRequest(request))
    except ValueError:
        return False
    optional = form.reply_is_optional and form.needs is not None
    return form.reply is not None and (not optional or has_feature(protocol_features, form.needs or 0))


def _kind_of(request: int, reply: bytes, *, replies: bool) -> Kind:
    if replies:
        return Kind.REFUSED if reply == form_of(FrontendRequest(request)).refusal else Kind.ACCEPTED
    require(len(reply) == U64.layout.sizeof(), f"request {request} was acknowledged with {len(reply)} bytes, not 8")
    return Kind.REFUSED if any(reply) else Kind.ACCEPTED
