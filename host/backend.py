"""One vhost-user session: what every front-end message does, decided without touching the operating system.

:meth:`Backend.handle` is a generator. It *yields* the effects that a message has, one :data:`Action` at a time, and
returns the bytes of the reply, if there is one. The shell performs each action before it asks for the next, throws the
:class:`VhostUserError` of a failed one back in, and sends the reply last: so an acknowledgement always follows its
effect, and a refused message changes nothing.

Source: vhost-user specification, "Front-end message types", "Ring states", "VHOST_USER_PROTOCOL_F_REPLY_ACK".

Must not know: sockets, mappings, threads, time.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Final

from host.actions import (
    Action,
    AddRegion,
    Announce,
    DropRegion,
    Effects,
    ReplaceMemory,
    SetBackendChannel,
    SetVringFile,
    StartRing,
    StopRing,
)
from host.virtio_balloon import VirtioBalloon
from host.virtqueue import RingFeatures
from host.vring import Vring
from protocol.errors import VhostUserError
from protocol.memory import MemoryRegion, RegionTable
from protocol.vhost_user import (
    CONFIG_MAX,
    FRONTEND_REQUEST_FORMS,
    REGIONS_PER_TABLE,
    BackendRequest,
    DeviceConfig,
    FrontendRequest,
    MemoryTable,
    Payload,
    ProtocolFeature,
    VringAddress,
    VringFile,
    VringState,
)
from protocol.vhost_user_codec import BadMessage, Message, build_message, build_own_reply, build_reply
from protocol.virtio import PROTOCOL_FEATURES, FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import QUEUES_MAX, BalloonFeature, BalloonQueue, queue_order

MEM_SLOTS: Final = 509
"""Most memory regions of one virtual machine, as libvhost-user and rust-vmm have it."""

OFFERED_PROTOCOL_FEATURES: Final = feature_mask(
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.RESET_DEVICE,
    ProtocolFeature.CONFIGURE_MEM_SLOTS,
)


class MustClose(VhostUserError):
    """The front-end waits for a reply that cannot be given: the connection has to be closed."""


@dataclass(slots=True)
class Session:
    """All that the front-end negotiated and configured: one plain record (besides the file descriptors)."""

    offered: int
    balloon: VirtioBalloon
    features: int = 0
    protocol_features: int = 0
    table: RegionTable = field(default_factory=RegionTable)
    vrings: list[Vring] = field(default_factory=lambda: [Vring(index) for index in range(QUEUES_MAX)])
    has_backend_channel: bool = False

    def has_protocol_feature(self, feature: ProtocolFeature) -> bool:
        """Return whether ``feature`` was negotiated."""
        return has_feature(self.protocol_features, feature)


class Backend:
    """The state machine of one session. See the module's text for how to drive it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._answers: dict[FrontendRequest, Callable[[Message], Payload]] = {
            FrontendRequest.GET_FEATURES: lambda _: self.session.offered,
            FrontendRequest.GET_PROTOCOL_FEATURES: lambda _: OFFERED_PROTOCOL_FEATURES,
            FrontendRequest.GET_QUEUE_NUM: lambda _: len(queue_order(self.session.offered)),
            FrontendRequest.GET_MAX_MEM_SLOTS: lambda _: MEM_SLOTS,
            FrontendRequest.GET_CONFIG: self._get_config,
        }
        self._effects: dict[FrontendRequest, Callable[[Message], Effects]] = {
            FrontendRequest.SET_FEATURES: self._set_features,
            FrontendRequest.SET_OWNER: self._nothing,
            # Deprecated by the specification, which lets a back-end ignore it; state is never dropped here.
            FrontendRequest.RESET_OWNER: self._nothing,
            FrontendRequest.SET_MEM_TABLE: self._set_mem_table,
            FrontendRequest.SET_VRING_NUM: self._set_vring_num,
            FrontendRequest.SET_VRING_ADDR: self._set_vring_addr,
            FrontendRequest.SET_VRING_BASE: self._set_vring_base,
            FrontendRequest.SET_VRING_KICK: self._set_vring_kick,
            FrontendRequest.SET_VRING_CALL: self._set_vring_file,
            FrontendRequest.SET_VRING_ERR: self._set_vring_file,
            FrontendRequest.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            FrontendRequest.SET_VRING_ENABLE: self._set_vring_enable,
            FrontendRequest.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            FrontendRequest.SET_CONFIG: self._set_config,
            FrontendRequest.RESET_DEVICE: self._reset_device,
            FrontendRequest.ADD_MEM_REG: self._add_mem_reg,
            FrontendRequest.REM_MEM_REG: self._rem_mem_reg,
        }

    def handle(self, message: Message | BadMessage) -> Generator[Action, int | None, bytes | None]:
        """Carry out one message: yield its effects, return the reply's bytes or None.

        Raises:
            MustClose: the message is wrong and its sender waits for an answer that does not exist.
        """
        try:
            if isinstance(message, BadMessage):
                raise message.error
            own_reply = yield from self._carry_out(message)
        except VhostUserError as error:
            yield Announce("message_refused", {"request": _name(message.request), "reason": str(error)})
            return self._refuse(message, error)
        if own_reply is not None:
            return own_reply
        return build_reply(message.request, 0) if self._wants_ack(message) else None

    def _carry_out(self, message: Message) -> Generator[Action, int | None, bytes | None]:
        request = message.request
        if not isinstance(request, FrontendRequest):
            raise VhostUserError(f"request {request} is not for a back-end")
        if request in self._answers:
            return build_own_reply(request, self._answers[request](message))
        if request is FrontendRequest.GET_VRING_BASE:
            return build_own_reply(request, (yield from self._get_vring_base(message)))
        if request not in self._effects:
            raise VhostUserError(f"{request.name} needs a feature that was not negotiated")
        yield from self._effects[request](message)
        return None

    def _wants_ack(self, message: Message | BadMessage) -> bool:
        return message.need_reply and self.session.has_protocol_feature(ProtocolFeature.REPLY_ACK)

    def _refuse(self, message: Message | BadMessage, error: VhostUserError) -> bytes | None:
        if message.request == FrontendRequest.GET_CONFIG:
            return build_reply(message.request)  # "a zero length payload in case of error"
        if self._wants_ack(message):
            return build_reply(message.request, 1)
        if _has_own_reply(message.request):
            raise MustClose(str(error))
        return None

    def _vring(self, index: int) -> Vring:
        # The whole 32-bit number is compared: a truncated one once let DPDK index out of bounds (CVE-2020-10723).
        if index >= QUEUES_MAX:
            raise VhostUserError(f"queue {index} does not exist, {QUEUES_MAX} is the most a balloon has")
        return self.session.vrings[index]

    # -- negotiation ------------------------------------------------------------------------------------------------

    def _nothing(self, _message: Message) -> Effects:
        yield from ()

    def _set_features(self, message: Message) -> Effects:
        features = _u64(message)
        session = self.session
        if unknown := features & ~session.offered:
            raise VhostUserError(f"feature bits {unknown:#x} were not offered")
        if not has_feature(features, FeatureBit.VERSION_1):
            raise VhostUserError("VERSION_1 was not accepted, and this device has no legacy mode")
        if features != session.features:
            yield from self._stop_all()  # what runs has the old features' queue order and ring rules
        session.features = session.balloon.features = features
        queues = [queue.value for queue in queue_order(features)]
        yield Announce("features", {"negotiated": features, "queues": queues})
        if not features & PROTOCOL_FEATURES:
            # "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled
            # state." User Mode Linux loses bit 30 on a second SET_FEATURES and then never enables a ring.
            for vring in session.vrings:
                vring.enabled = True
        yield from self._run_wanted()

    def _set_protocol_features(self, message: Message) -> Effects:
        features = _u64(message)
        if unknown := features & ~OFFERED_PROTOCOL_FEATURES:
            raise VhostUserError(f"protocol feature bits {unknown:#x} were not offered")
        self.session.protocol_features = features
        yield from ()

    def _set_backend_req_fd(self, message: Message) -> Effects:
        yield SetBackendChannel(message.fds[0])
        self.session.has_backend_channel = True

    def _reset_device(self, _message: Message) -> Effects:
        yield from self._stop_all()
        for vring in self.session.vrings:
            vring.reset()
        self.session.features = 0
        self.session.balloon.reset()

    # -- configuration space ----------------------------------------------------------------------------------------

    def _get_config(self, message: Message) -> DeviceConfig:
        config = _config(message)
        return replace(config, data=self.session.balloon.read_config(config.offset, len(config.data)))

    def _set_config(self, message: Message) -> Effects:
        config = _config(message)
        poison_offered = has_feature(self.session.offered, BalloonFeature.PAGE_POISON)
        self.session.balloon.write_config(config.offset, config.data, poison_offered=poison_offered)
        yield from ()

    def change_config(self, **fields: int) -> bytes | None:
        """Set ``fields`` of the configuration space (names as in :class:`BalloonConfig`). Return the request to send on
        the back-end's channel, or None where no driver listens: it will read the fields when it starts."""
        session = self.session
        session.balloon.config = replace(session.balloon.config, **fields)
        listens = session.has_backend_channel and session.has_protocol_feature(ProtocolFeature.CONFIG)
        if not listens or not any(vring.running for vring in session.vrings):
            return None
        return build_message(BackendRequest.CONFIG_CHANGE_MSG)

    # -- memory -----------------------------------------------------------------------------------------------------

    def _set_mem_table(self, message: Message) -> Effects:
        assert isinstance(message.payload, MemoryTable)
        if len(message.payload.regions) > REGIONS_PER_TABLE:
            raise VhostUserError(f"a memory table of more than {REGIONS_PER_TABLE} regions")
        table = RegionTable(message.payload.regions)
        yield from self._stop_all()
        try:
            yield ReplaceMemory(table, message.fds)
        except VhostUserError:
            yield from self._run_wanted()  # on the old memory, which stays
            raise
        self.session.table = table
        yield from self._run_wanted()

    def _add_mem_reg(self, message: Message) -> Effects:
        assert isinstance(message.payload, MemoryRegion)
        if len(self.session.table.regions) >= MEM_SLOTS:
            raise VhostUserError(f"more than {MEM_SLOTS} memory regions")
        table = self.session.table.with_region(message.payload)
        yield AddRegion(table, message.fds[0])
        self.session.table = table
        yield from self._run_wanted()

    def _rem_mem_reg(self, message: Message) -> Effects:
        assert isinstance(message.payload, MemoryRegion)
        number = self.session.table.number_of(message.payload)
        table = self.session.table.without(number)
        yield from self._stop_all()
        yield DropRegion(table, number)
        self.session.table = table
        yield from self._run_wanted()

    # -- rings ------------------------------------------------------------------------------------------------------

    def _set_vring_num(self, message: Message) -> Effects:
        state = _vring_state(message)
        vring = self._vring(state.index)
        vring.set_size(state.num)
        yield from self._halt(vring)

    def _set_vring_base(self, message: Message) -> Effects:
        state = _vring_state(message)
        vring = self._vring(state.index)
        yield from self._halt(vring)
        vring.base = state.num & 0xFFFF

    def _set_vring_addr(self, message: Message) -> Effects:
        assert isinstance(message.payload, VringAddress)
        vring = self._vring(message.payload.index)
        if vring.started and vring.is_at(message.payload):
            vring.address = message.payload  # only dirty logging was switched
            return
        vring.set_address(message.payload, self.session.table)
        yield from self._halt(vring)

    def _set_vring_kick(self, message: Message) -> Effects:
        vring = yield from self._change_file(message)
        vring.started, vring.broken, vring.resumes = True, False, False
        yield from self._run_wanted(vring)

    def _set_vring_file(self, message: Message) -> Effects:
        yield from self._change_file(message)
        yield from self._run_wanted()

    def _change_file(self, message: Message) -> Generator[Action, int | None, Vring]:
        # No worker may be using the old descriptor while it is closed. A completion may have been signalled on the old
        # call descriptor and not been seen, hence the new one is signalled once when the ring goes on.
        assert isinstance(message.request, FrontendRequest)
        assert isinstance(message.payload, VringFile)
        vring = self._vring(message.payload.index)
        vring.signal_first |= vring.running and message.request is FrontendRequest.SET_VRING_CALL
        yield from self._pause(vring)
        try:
            yield SetVringFile(message.request, vring.index, message.fds[0] if message.fds else None)
        except VhostUserError:
            yield from self._run_wanted()  # with the old descriptor, which stays
            raise
        return vring

    def _set_vring_enable(self, message: Message) -> Effects:
        state = _vring_state(message)
        vring = self._vring(state.index)
        if state.num > 1:
            raise VhostUserError(f"SET_VRING_ENABLE with {state.num}, which is neither 0 nor 1")
        vring.enabled = state.num == 1
        if not vring.enabled:
            yield from self._pause(vring)
        yield from self._run_wanted(vring)

    def _get_vring_base(self, message: Message) -> Generator[Action, int | None, VringState]:
        vring = self._vring(_vring_state(message).index)
        yield from self._halt(vring)
        yield SetVringFile(FrontendRequest.SET_VRING_KICK, vring.index, None)
        yield SetVringFile(FrontendRequest.SET_VRING_CALL, vring.index, None)
        return VringState(vring.index, vring.base)

    def _halt(self, vring: Vring) -> Effects:
        # A started ring that is configured again begins anew, and only a kick descriptor starts it: reading the old
        # place in between could take a driver's reused memory for a ring.
        yield from self._pause(vring)
        vring.started = vring.broken = False
        # With the last ring the driver is gone; the next one sets a poison value of its own before its first chain.
        self.session.balloon.poison_settled &= any(each.started for each in self.session.vrings)

    def _pause(self, vring: Vring) -> Effects:
        if not vring.running:
            return
        next_avail = yield StopRing(vring.index)
        assert next_avail is not None
        vring.running, vring.base, vring.resumes = False, next_avail, True

    def _stop_all(self) -> Effects:
        for vring in self.session.vrings:
            yield from self._pause(vring)

    def _run_wanted(self, asked: Vring | None = None) -> Effects:
        # Bring every ring that should run and can run to running. One whose memory is not there is parked; that refuses
        # the message only if the message asked for this very ring.
        order = queue_order(self.session.features)
        for vring in self.session.vrings:
            if vring.running or not vring.is_wanted or vring.index >= len(order):
                continue
            try:
                yield self._start_ring(vring, order[vring.index])
            except VhostUserError as error:
                if str(error) != vring.parked:
                    vring.parked = str(error)
                    yield Announce("queue_stopped", {"queue": vring.index, "reason": str(error)})
                if vring is asked:
                    raise
            else:
                vring.running, vring.parked, vring.signal_first = True, None, False

    def _start_ring(self, vring: Vring, queue: BalloonQueue) -> StartRing:
        features = self.session.features
        return StartRing(
            index=vring.index,
            queue=queue,
            place=vring.place(self.session.table),
            next_avail=vring.base,
            signal_first=vring.signal_first,
            resumes=vring.resumes,
            features=RingFeatures(
                event_idx=has_feature(features, FeatureBit.RING_EVENT_IDX),
                indirect_desc=has_feature(features, FeatureBit.RING_INDIRECT_DESC),
            ),
        )

    def ring_broke(self, index: int) -> Effects:
        """Take note that the driver broke the rules of ring ``index``: it stops until it is set up anew."""
        vring = self.session.vrings[index]
        vring.broken = True
        yield from self._pause(vring)


def _name(request: int) -> str:
    try:
        return FrontendRequest(request).name
    except ValueError:
        return str(request)


def _has_own_reply(request: int) -> bool:
    try:
        return FRONTEND_REQUEST_FORMS[FrontendRequest(request)].reply is not None
    except ValueError:
        return False


def _u64(message: Message) -> int:
    assert isinstance(message.payload, int)
    return message.payload


def _vring_state(message: Message) -> VringState:
    assert isinstance(message.payload, VringState)
    return message.payload


def _config(message: Message) -> DeviceConfig:
    assert isinstance(message.payload, DeviceConfig)
    if message.payload.offset + len(message.payload.data) > CONFIG_MAX:
        raise VhostUserError(
            f"{len(message.payload.data)} bytes of configuration space at {message.payload.offset} exceed {CONFIG_MAX}"
        )
    return message.payload
