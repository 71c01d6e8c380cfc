"""The front-end's side of a vhost-user session: which messages, in which order, with which answers.

Each function is a generator of :class:`Call` values. The shell sends a call's bytes with its file descriptors, reads
one reply if ``reply_expected``, and sends the reply's payload back in; the generator checks it and goes on. The order
of messages is User Mode Linux's and QEMU's common part.

Source: vhost-user specification, "Communication", "Multiple queue support", VHOST_USER_PROTOCOL_F_REPLY_ACK.

Must not know: sockets, mappings, the balloon beyond its configuration space.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from protocol.errors import VhostUserError
from protocol.memory import MemoryRegion, UserAddress
from protocol.vhost_user import (
    DeviceConfig,
    FrontendRequest,
    MemoryTable,
    Payload,
    ProtocolFeature,
    VringAddress,
    VringFile,
    VringState,
    form_of,
)
from protocol.vhost_user_codec import build_message
from protocol.virtio import PROTOCOL_FEATURES, feature_mask, has_feature
from protocol.virtio_balloon import CONFIG_SIZE, BalloonConfig

WANTED_PROTOCOL_FEATURES = feature_mask(
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
)


@dataclass(frozen=True, slots=True)
class Call:
    """One message to send: its bytes, the file descriptors to go with it (still ours), and whether a reply comes."""

    request: FrontendRequest
    data: bytes
    fds: tuple[int, ...]
    reply_expected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSetup:
    """One virtqueue to announce: where its parts lie (user addresses), its size in entries, its kick and call fds."""

    size: int
    descriptor: UserAddress
    available: UserAddress
    used: UserAddress
    kick: int
    call: int


Calls: TypeAlias = Generator[Call, Payload, None]


class Frontend:
    """One session with a back-end. ``features`` and ``protocol_features`` are what was negotiated so far."""

    def __init__(self) -> None:
        self.features = 0
        self.protocol_features = 0

    def _call(
        self, request: FrontendRequest, payload: Payload = None, fds: tuple[int, ...] = ()
    ) -> Generator[Call, Payload, Payload]:
        own_reply = form_of(request).reply is not None
        need_reply = not own_reply and has_feature(self.protocol_features, ProtocolFeature.REPLY_ACK)
        data = build_message(request, payload, need_reply=need_reply)
        answer = yield Call(request, data, fds, own_reply or need_reply)
        if (need_reply and answer != 0) or (own_reply and answer is None):
            raise VhostUserError(f"the back-end refused {request.name}")
        return answer

    def offer(self) -> Generator[Call, Payload, int]:
        """Begin the session; return the feature bits that the device offers to a driver.

        Raises:
            VhostUserError: the back-end lacks protocol features or configuration space.
        """
        yield from self._call(FrontendRequest.SET_OWNER)
        offered = yield from self._call(FrontendRequest.GET_FEATURES)
        assert isinstance(offered, int)
        if not offered & PROTOCOL_FEATURES:
            raise VhostUserError("the back-end has no protocol features")
        known = yield from self._call(FrontendRequest.GET_PROTOCOL_FEATURES)
        assert isinstance(known, int)
        accepted = known & WANTED_PROTOCOL_FEATURES
        if not has_feature(accepted, ProtocolFeature.CONFIG):
            raise VhostUserError("the back-end has no configuration space")
        yield from self._call(FrontendRequest.SET_PROTOCOL_FEATURES, accepted)
        self.protocol_features = accepted
        return offered & ~PROTOCOL_FEATURES

    def set_backend_channel(self, fd: int) -> Calls:
        """Give the back-end the channel for its own requests, if it can use one."""
        if has_feature(self.protocol_features, ProtocolFeature.BACKEND_REQ):
            yield from self._call(FrontendRequest.SET_BACKEND_REQ_FD, fds=(fd,))

    def accept(self, features: int) -> Calls:
        """Accept ``features`` for the driver."""
        yield from self._call(FrontendRequest.SET_FEATURES, features | PROTOCOL_FEATURES)
        self.features = features

    def set_memory(self, regions: tuple[MemoryRegion, ...], fds: tuple[int, ...]) -> Calls:
        """Tell the whole memory: the regions and one file descriptor for each."""
        yield from self._call(FrontendRequest.SET_MEM_TABLE, MemoryTable(regions), fds)

    def start_queue(self, index: int, queue: QueueSetup) -> Calls:
        """Announce one virtqueue from its beginning and have it served."""
        yield from self._call(FrontendRequest.SET_VRING_NUM, VringState(index, queue.size))
        yield from self._call(FrontendRequest.SET_VRING_BASE, VringState(index, 0))
        yield from self._call(
            FrontendRequest.SET_VRING_ADDR,
            VringAddress(index=index, flags=0, descriptor=queue.descriptor, used=queue.used, available=queue.available),
        )
        yield from self._call(FrontendRequest.SET_VRING_CALL, VringFile(index, True), (queue.call,))
        yield from self._call(FrontendRequest.SET_VRING_KICK, VringFile(index, True), (queue.kick,))
        yield from self._call(FrontendRequest.SET_VRING_ENABLE, VringState(index, 1))

    def stop_queue(self, index: int) -> Generator[Call, Payload, int]:
        """Stop one virtqueue; return the next available index (16 bits) to start from again.

        Raises:
            VhostUserError: the back-end refused.
        """
        state = yield from self._call(FrontendRequest.GET_VRING_BASE, VringState(index, 0))
        assert isinstance(state, VringState)
        if state.index != index:
            raise VhostUserError(f"the back-end answered for queue {state.index} instead of {index}")
        return state.num

    def get_config(self) -> Generator[Call, Payload, BalloonConfig]:
        """Read the configuration space.

        Raises:
            VhostUserError: the back-end refused.
        """
        request = DeviceConfig(offset=0, flags=0, data=bytes(CONFIG_SIZE))
        config = yield from self._call(FrontendRequest.GET_CONFIG, request)
        assert isinstance(config, DeviceConfig)
        if len(config.data) != CONFIG_SIZE:
            raise VhostUserError(f"{CONFIG_SIZE} bytes of configuration space were asked for, {len(config.data)} came")
        return BalloonConfig.parse(config.data)

    def set_config(self, offset: int, data: bytes) -> Calls:
        """Write ``data`` at byte ``offset`` of the configuration space."""
        yield from self._call(FrontendRequest.SET_CONFIG, DeviceConfig(offset=offset, flags=0, data=data))
