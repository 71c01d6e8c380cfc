"""Where a session went wrong: follows its records one by one, and says what each shows.

A fault is what an author has to look at. It need not be a broken rule: a ring that never ran because its front-end did
not enable it is one too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocol.recording.notification import is_call_due
from protocol.recording.records import (
    BACK_END,
    DISCARDED,
    KICK,
    TAKEN_OVER,
    Lost,
    Noise,
    PutBack,
    Record,
    Remark,
    RingBroken,
    RingStart,
    RingStop,
    SessionBegin,
    SessionEnd,
    Signal,
    TakenChain,
    UsedChain,
    WireMessage,
)
from protocol.units import format_size
from protocol.vhost_user import FRONTEND_REQUEST_FORMS, FrontendRequest, HeaderFlag, ProtocolFeature
from protocol.vhost_user_codec import Channel
from protocol.vhost_user_payloads import VringAddress, VringFile, VringState
from protocol.virtio import PROTOCOL_FEATURES, DeviceStatus, has_feature
from protocol.virtio_balloon import feature_bit_names
from protocol.virtio_ring import VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_WRITE
from scripts.check.recording.words import CLOSED, STRUCK, VERDICT, ReadMessage, protocol_feature_names
from scripts.check.verdict import Verdict

_PROXY_ENDS: Final = (
    "the front-end closed its connection",
    "both sides closed their connections",
    "the proxy was ended",
)

GOOD_ENDS: Final = ("front-end gone", "daemon stops", "disconnected by command", CLOSED, *_PROXY_ENDS)
"""The reasons of a session's end that are no fault."""

_HARMLESS_FATES: Final = (DISCARDED, "poison", "discard_off", "inhibited", "stale_hint")
"""What becomes of a range where neither side does anything wrong."""

_TELLING_REMARKS: Final[Mapping[str, str]] = {
    "queue_stopped": "queue {queue} cannot be served: {reason}",
    "queue_unknown": "queue {queue} is served without a meaning: {reason}",
    "signal_failed": "{reason}",
}


class Fault(NamedTuple):
    """What went wrong, one sentence, and the clauses that it is about. A fault of a ring's chain names the chain after
    ``at``, so that the same fault of others can be counted with it."""

    text: str
    clauses: tuple[str, ...] = ()
    at: str = ""


@dataclass(slots=True)
class _RingView:
    """What is known of one queue. ``served`` says whether it ever ran, ``taken`` are its chains in flight."""

    number: int
    sized: bool = False
    placed: bool = False
    enabled: bool = False
    kick: bool = False
    call: bool = False
    served: bool = False
    start: RingStart | None = None
    taken: dict[int, TakenChain] = field(default_factory=dict)
    uncalled: bool = False

    @property
    def missing(self) -> list[str]:
        """The messages that would have to come before it can run."""
        steps = {"SET_VRING_NUM": self.sized, "SET_VRING_ADDR": self.placed, "SET_VRING_ENABLE": self.enabled}
        return [name for name, done in steps.items() if not done]

    @property
    def title(self) -> str:
        """Its number and what it carries."""
        carries = "" if self.start is None else self.start.queue
        return f"queue {self.number} ({carries})" if carries else f"queue {self.number}"


class Judge:
    """Follows one session. :meth:`follow` returns the faults that a record shows."""

    def __init__(self) -> None:
        self.side = BACK_END
        self._offered: int | None = None
        self._protocol_offered: int | None = None
        self._features: int | None = None
        self._protocol_features = 0
        self._status: int | None = None
        self._rings: dict[int, _RingView] = {}
        self._pending: list[tuple[Channel, int, str]] = []
        self._refused = ""

    def _ring(self, number: int) -> _RingView:
        if number not in self._rings:
            # Without bit 30 rings are enabled from the start.
            enabled = self._features is not None and not self._features & PROTOCOL_FEATURES
            self._rings[number] = _RingView(number, enabled=enabled)
        return self._rings[number]

    def follow(self, record: Record, read: ReadMessage | None = None) -> list[Fault]:
        """Take the next record, with what it reads as if it is a message; return what is wrong."""
        match record:
            case SessionBegin(side=side):
                self.side = side
                return []
            case WireMessage():
                assert read is not None
                return list(self._message(record, read))
            case Noise(stream=stream, data=data):
                return [Fault(f"{len(data)} bytes of the {stream.value} are not a message", ("V-1",))]
            case RingStart():
                return list(self._ring_start(record))
            case RingStop(ring=ring):
                return list(self._ring_stop(self._ring(ring)))
            case RingBroken(ring=ring, reason=reason):
                return [Fault(f"{self._ring(ring).title} is broken: {reason}")]
            case Signal(ring=ring, what=what):
                return list(self._kicked(self._ring(ring))) if what == KICK else []
            case TakenChain():
                return list(self._chain(record))
            case UsedChain():
                return list(self._used(record))
            case PutBack(ring=ring, head=head):
                self._ring(ring).taken.pop(head, None)
                return []
            case Remark():
                return list(self._remark(record))
            case Lost(count=count, full=full):
                return [Fault("the recording reached its limit" if full else f"{count} records are missing")]
            case SessionEnd(reason=reason):
                return list(self._end(reason))
            case _:
                return []

    # -- messages ---------------------------------------------------------------------------------------------------

    def _message(self, message: WireMessage, read: ReadMessage) -> Iterator[Fault]:
        if message.stream.carries_replies:
            yield from self._reply(message, read)
            return
        self._refused = ""
        if self.side != BACK_END and read.wrong:
            yield Fault(f"{read.name}: {read.wrong}")
        if not isinstance(read.request, FrontendRequest) or message.stream is not Channel.FRONTEND_REQUESTS:
            return
        self._expect_reply(message, read.request)
        form = FRONTEND_REQUEST_FORMS[read.request]
        if form.needs is not None and not has_feature(self._protocol_features, form.needs):
            yield Fault(f"{read.name} came without the protocol feature {form.needs.name}")
        yield from self._settings(read)

    def _expect_reply(self, message: WireMessage, request: FrontendRequest) -> None:
        form = FRONTEND_REQUEST_FORMS[request]
        negotiated = form.needs is None or has_feature(self._protocol_features, form.needs)
        own = form.reply is not None and (negotiated or not form.reply_is_optional)
        features = self._protocol_features
        if request is FrontendRequest.SET_PROTOCOL_FEATURES:  # which takes effect before it is acknowledged
            features |= int.from_bytes(message.payload[:8], "little")
        acks = has_feature(features, ProtocolFeature.REPLY_ACK)
        if own or (acks and message.flags & HeaderFlag.NEED_REPLY):
            self._pending.append((Channel.BACKEND_REPLIES, message.request, request.name))

    def _settings(self, read: ReadMessage) -> Iterator[Fault]:
        match read.request, read.payload:
            case FrontendRequest.SET_FEATURES, int(word):
                self._features = word
                if self._offered is not None and (extra := word & ~self._offered):
                    names = ", ".join(feature_bit_names(extra))
                    yield Fault(f"the driver takes features that were not offered: {names}", ("V-13", "G-5"))
                if not word & PROTOCOL_FEATURES:
                    for ring in self._rings.values():
                        ring.enabled = True
            case FrontendRequest.SET_PROTOCOL_FEATURES, int(word):
                self._protocol_features = word
                if self._protocol_offered is not None and (extra := word & ~self._protocol_offered):
                    names = ", ".join(protocol_feature_names(extra))
                    yield Fault(f"protocol features that were not offered are used: {names}", ("V-15",))
            case FrontendRequest.SET_STATUS, int(word):
                self._status = word
                if word & DeviceStatus.FAILED:
                    yield Fault("the driver has given the device up: FAILED is set", ("G-4",))
            case FrontendRequest.SET_VRING_NUM, VringState(index=index):
                self._ring(index).sized = True
            case FrontendRequest.SET_VRING_ENABLE, VringState(index=index, num=num):
                self._ring(index).enabled = bool(num)
            case FrontendRequest.SET_VRING_ADDR, VringAddress(index=index):
                self._ring(index).placed = True
            case FrontendRequest.SET_VRING_KICK, VringFile(index=index, has_file=has_file):
                self._ring(index).kick = has_file
            case FrontendRequest.SET_VRING_CALL, VringFile(index=index, has_file=has_file):
                self._ring(index).call = has_file
            case FrontendRequest.VRING_KICK, VringState(index=index):
                yield from self._kicked(self._ring(index))

    def _reply(self, message: WireMessage, read: ReadMessage) -> Iterator[Fault]:
        if read.wrong:
            yield Fault(f"the reply to {read.name}: {read.wrong}", ("V-2",))
        if message.stream is not Channel.BACKEND_REPLIES:
            return
        if not self._pending:
            yield Fault(f"a reply to {read.name} that was not asked for", ("V-11",))
        else:
            _, asked, name = self._pending.pop(0)
            if asked != message.request:
                yield Fault(f"a reply to {read.name} where one to {name} is due", ("V-2",))
        match read.request, read.payload:
            case FrontendRequest.GET_FEATURES, int(word):
                self._offered = word
            case FrontendRequest.GET_PROTOCOL_FEATURES, int(word):
                self._protocol_offered = word
            case FrontendRequest.GET_STATUS, int(word) if self._status is not None:
                if word & DeviceStatus.DEVICE_NEEDS_RESET:
                    yield Fault("the device needs a reset", ("G-2",))
            case FrontendRequest() as request, int(word) if (
                word and FRONTEND_REQUEST_FORMS[request].reply is None and self._refused != request.name
            ):
                yield Fault(f"{request.name} was refused with {word}", ("V-10",))

    def _remark(self, remark: Remark) -> Iterator[Fault]:
        fields = remark.fields
        if remark.event == VERDICT and fields.get("verdict") == Verdict.FAIL.value:
            clauses = fields.get("clauses")
            ids = tuple(map(str, clauses)) if isinstance(clauses, list) else ()
            yield Fault(f"{fields.get('name')}: {fields.get('reason')}", ids)
        if remark.event == TAKEN_OVER:
            self._pending.clear()
        if remark.event == STRUCK:
            yield Fault(f"the proxy carried out line {fields.get('line')} of its script: {fields.get('rule')}")
        if remark.event == "message_refused":
            self._refused = str(fields.get("request"))
            yield Fault(f"{fields.get('request')} was refused: {fields.get('reason')}")
        elif remark.event in _TELLING_REMARKS and {"queue", "reason"} >= fields.keys() - {"t"}:
            yield Fault(_TELLING_REMARKS[remark.event].format(**{"queue": "", "reason": "", **fields}))

    # -- rings ------------------------------------------------------------------------------------------------------

    def _kicked(self, ring: _RingView) -> Iterator[Fault]:
        if not (ring.served or (ring.sized and ring.placed)):
            missing = " and ".join(name for name in ring.missing if name != "SET_VRING_ENABLE")
            yield Fault(f"{ring.title} was kicked but never set up: no {missing}", ("V-31",))

    def _ring_start(self, start: RingStart) -> Iterator[Fault]:
        ring = self._ring(start.ring)
        ring.start, ring.served, ring.uncalled = start, True, False
        ring.taken.clear()
        if self._features is None:
            yield Fault(f"{ring.title} runs before features were negotiated", ("G-18",))

    def _ring_stop(self, ring: _RingView) -> Iterator[Fault]:
        yield from _never_used(ring, "when the queue stopped")
        ring.start = None
        ring.taken.clear()

    def _chain(self, chain: TakenChain) -> Iterator[Fault]:
        ring = self._ring(chain.ring)
        status = self._status
        at = f"chain {chain.head}"
        # Linux offers its first statistics buffer before DRIVER_OK.
        if status is not None and not status & DeviceStatus.DRIVER_OK and chain.queue != "stats":
            yield Fault(f"{ring.title}: a chain before DRIVER_OK", ("G-18",), at)
        if chain.note.startswith("not a chain"):
            return
        if chain.head in ring.taken:
            yield Fault(f"{ring.title}: a chain is taken again before it was given back", (), at)
        if chain.queue == "stats" and any(other.held for other in ring.taken.values()):
            yield Fault(f"{ring.title}: a second buffer while the device has one", ("BS-1",), at)
        ring.taken[chain.head] = chain
        indirect = any(each.flags & VIRTQ_DESC_F_INDIRECT for each in chain.descriptors)
        if indirect and ring.start is not None and not ring.start.indirect_desc:
            yield Fault(f"{ring.title}: an indirect table, which was not negotiated", ("S-6", "P-13"), at)
        kept: dict[str, tuple[int, int]] = {}
        for _, length, fate in chain.ranges:
            if fate not in _HARMLESS_FATES:
                number, size = kept.get(fate, (0, 0))
                kept[fate] = (number + 1, size + length)
        for fate, (number, size) in kept.items():
            says = f"{number} range{'s' * (number > 1)}, {format_size(size)}"
            yield Fault(f"{ring.title}: not discarded: {fate.replace('_', ' ')}", (), f"{at}: {says}")

    def _used(self, used: UsedChain) -> Iterator[Fault]:
        ring = self._ring(used.ring)
        at = f"chain {used.head}"
        chain = ring.taken.pop(used.head, None)
        if chain is None:
            if ring.start is not None:
                yield Fault(f"{ring.title}: given back, and not in flight", ("S-17", "P-16"), at)
        elif not chain.left_out:
            parts = chain.indirect or chain.descriptors
            room = sum(each.length for each in parts if each.flags & VIRTQ_DESC_F_WRITE)
            if used.length > room:
                yield Fault(f"{ring.title}: used length {used.length} of {room} writable bytes", ("S-17", "P-16"), at)
        yield from self._call(used, ring, at)

    def _call(self, used: UsedChain, ring: _RingView, at: str) -> Iterator[Fault]:
        start = ring.start
        if start is None:
            return
        clauses = ("P-14",) if start.packed else ("S-16",) if start.event_idx else ("S-15",)
        if used.old >= 0 and used.new >= 0:
            due = is_call_due(
                packed=start.packed,
                event_idx=start.event_idx,
                size=start.size,
                old=used.old,
                new=used.new,
                event=used.event,
                flags=used.flags,
            )
            if due and not used.call:
                yield Fault(f"{ring.title}: no call although the driver wanted one", clauses, at)
            elif used.call and not due:
                yield Fault(f"{ring.title}: a call that the driver did not want", clauses, at)
        in_band = has_feature(self._protocol_features, ProtocolFeature.INBAND_NOTIFICATIONS)
        if used.call and not ring.call and not in_band and self.side == BACK_END and not ring.uncalled:
            ring.uncalled = True
            yield Fault(f"{ring.title}: the driver wants calls, and has given no descriptor for them", ("V-43",))

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self, reason: str) -> Iterator[Fault]:
        if reason not in GOOD_ENDS and not reason.startswith("front-end gone: "):
            yield Fault(f"the session ended: {reason}")
        yield from self.left_open()

    def left_open(self) -> Iterator[Fault]:
        """Return what is unfinished where the records of the session end."""
        for ring in self._rings.values():
            yield from _never_used(ring, "at the end")
            if ring.kick and not ring.served and self.side == BACK_END:
                missing = " and no ".join(ring.missing) or "memory for it"
                yield Fault(f"{ring.title} has a kick descriptor but was never served: no {missing}", ("V-31",))
        for _, _, name in self._pending:
            yield Fault(f"{name} was never answered", ("V-9", "V-10"))
        self._rings.clear()
        self._pending.clear()


def _never_used(ring: _RingView, when: str) -> Iterator[Fault]:
    for chain in ring.taken.values():
        if not chain.held:
            yield Fault(f"{ring.title}: a chain was never given back", (), f"chain {chain.head}, {when}")
