"""Recorded sessions for tests, made of records."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from protocol.memory import UserAddress
from protocol.recording.records import (
    BACK_END,
    FileFact,
    Header,
    RangeFate,
    Record,
    RecordedDescriptor,
    RingStart,
    SessionBegin,
    SessionEnd,
    TakenChain,
    UsedChain,
)
from protocol.recording.stream import RecordedStream
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Channel, build_ack, build_message, build_own_reply
from protocol.vhost_user_payloads import Payload, VringAddress, VringFile, VringState
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature
from scripts.check.recording.explain import Explanation
from scripts.check.recording.listing import fault_text

OFFERED = feature_mask(
    BalloonFeature.STATS_VQ,
    BalloonFeature.PAGE_REPORTING,
    FeatureBit.VERSION_1,
    FeatureBit.RING_EVENT_IDX,
    FeatureBit.VHOST_USER_F_PROTOCOL_FEATURES,
)
PROTOCOL = feature_mask(ProtocolFeature.REPLY_ACK, ProtocolFeature.STATUS)
REPORTING = 3
BLOCK = 4 << 20


@dataclass
class Tape:
    """Records of one session, a millisecond apart."""

    side: str = BACK_END
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records = [
            Header(t=100, time=1_700_000_000, program="a test"),
            SessionBegin(t=100, session=1, pid=42, side=self.side),
        ]

    @property
    def now(self) -> float:
        return 100 + len(self.records) / 1000

    def add(self, record: Record) -> None:
        self.records.append(record)

    def bytes(self, stream: Channel, data: bytes, files: Sequence[FileFact] = ()) -> None:
        self.records += RecordedStream(1, stream).feed(self.now, data, files)

    def ask(self, request: FrontendRequest, payload: Payload = None, *files: FileFact) -> None:
        self.bytes(Channel.FRONTEND_REQUESTS, build_message(request, payload), files)

    def reply(self, request: FrontendRequest, payload: Payload) -> None:
        self.bytes(Channel.BACKEND_REPLIES, build_own_reply(request, payload))

    def do(self, request: FrontendRequest, payload: Payload = None, *files: FileFact, status: int = 0) -> None:
        """A request that wants an acknowledgement, and gets it."""
        self.bytes(Channel.FRONTEND_REQUESTS, build_message(request, payload, need_reply=True), files)
        self.bytes(Channel.BACKEND_REPLIES, build_ack(request, status))

    def negotiate(self, features: int = OFFERED) -> None:
        self.ask(FrontendRequest.GET_FEATURES)
        self.reply(FrontendRequest.GET_FEATURES, OFFERED)
        self.ask(FrontendRequest.GET_PROTOCOL_FEATURES)
        self.reply(FrontendRequest.GET_PROTOCOL_FEATURES, PROTOCOL)
        self.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL)
        self.do(FrontendRequest.SET_FEATURES, features)

    def set_up(self, ring: int = REPORTING, *, call: bool = True, enable: bool = True) -> None:
        self.do(FrontendRequest.SET_VRING_NUM, VringState(ring, 16))
        here = UserAddress(0x7F0000000000)
        address = VringAddress(index=ring, flags=0, descriptor=here, used=here, available=here)
        self.do(FrontendRequest.SET_VRING_ADDR, address)
        if call:
            self.do(FrontendRequest.SET_VRING_CALL, VringFile(ring, True), FileFact("eventfd"))
        self.do(FrontendRequest.SET_VRING_KICK, VringFile(ring, True), FileFact("eventfd"))
        if enable:
            self.do(FrontendRequest.SET_VRING_ENABLE, VringState(ring, 1))
            self.start(ring)

    def start(self, ring: int = REPORTING, *, packed: bool = False, event_idx: bool = True) -> None:
        self.add(
            RingStart(
                t=self.now,
                session=1,
                ring=ring,
                queue="stats" if ring == 2 else "reporting",
                size=16,
                packed=packed,
                base=0,
                event_idx=event_idx,
                indirect_desc=False,
                in_order=False,
            )
        )

    def chain(self, head: int, fate: str = "discarded", *, flags: int = 2, queue: str = "reporting") -> None:
        descriptor = RecordedDescriptor(head, head * BLOCK, BLOCK, flags, 0)
        self.add(
            TakenChain(
                t=self.now,
                session=1,
                ring=REPORTING if queue == "reporting" else 2,
                queue=queue,
                head=head,
                descriptors=(descriptor,),
                ranges=(RangeFate(head * BLOCK, BLOCK, fate),) if queue == "reporting" else (),
                held=queue == "stats",
            )
        )

    def used(self, head: int, old: int = 0, *, length: int = 0, call: bool = True, event: int | None = None) -> None:
        wish = old if event is None else event
        record = UsedChain(
            t=self.now, session=1, ring=REPORTING, head=head, length=length, call=call, old=old, new=old + 1, event=wish
        )
        self.add(record)

    def ready(self, **options: bool) -> None:
        """Everything up to DRIVER_OK."""
        self.negotiate()
        self.do(FrontendRequest.SET_STATUS, 11)
        self.set_up(**options)
        self.do(FrontendRequest.SET_STATUS, 15)

    def end(self, reason: str = "front-end gone") -> None:
        self.add(SessionEnd(t=self.now, session=1, reason=reason))


def faults_of(records: Iterable[Record]) -> list[str]:
    """Return the faults of all sessions as the summary has them."""
    explanation = Explanation()
    for _ in explanation.explain(records):
        pass
    return [fault_text(fault) for session in explanation.sessions for fault in session.faults]


def lines_of(records: Iterable[Record]) -> list[str]:
    """Return the lines of the listing."""
    return [line for each in Explanation().explain(records) for line in each.lines]
