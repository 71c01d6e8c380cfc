"""Observations of a driver made by hand: a well-behaved one, and one but for a single thing."""

import struct
from typing import Any

from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.recording.records import (
    FileFact,
    Record,
    RecordedDescriptor,
    RingStart,
    Signal,
    TakenChain,
    UsedChain,
    WireMessage,
)
from protocol.vhost_user import VERSION, BackendRequest, FrontendRequest, HeaderFlag, ProtocolFeature
from protocol.vhost_user_codec import Channel, build_message
from protocol.vhost_user_payloads import (
    DeviceConfig,
    LogDescription,
    MemoryTable,
    Payload,
    VringAddress,
    VringFile,
    VringState,
)
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.driver.observation import UNKNOWN_FEATURE, Observed, SeenChain
from scripts.check.verdict import Outcome, Verdict

MIB = 1 << 20
FEATURES = feature_mask(
    FeatureBit.VERSION_1,
    FeatureBit.RING_EVENT_IDX,
    BalloonFeature.STATS_VQ,
    BalloonFeature.FREE_PAGE_HINT,
    BalloonFeature.PAGE_REPORTING,
    BalloonFeature.PAGE_POISON,
    FeatureBit.IN_ORDER,
    FeatureBit.VHOST_USER_F_PROTOCOL_FEATURES,
)
POISON = 0xAAAAAAAA
STATISTICS = struct.pack("<HQHQ", 4, 1 << 30, 5, 1 << 31)
FEWER = struct.pack("<HQHQ", 4, (1 << 30) - 4 * MIB, 5, 1 << 31)


def chain(queue: str, **fields: Any) -> SeenChain:
    """Return a chain as a well-behaved driver makes it, but for ``fields``."""
    places = {"inflate": 0, "deflate": 1, "stats": 2, "free_page": 3, "reporting": 4}
    made: dict[str, Any] = {"t": 3.0, "queue": queue, "index": places[queue], "indirect": False}
    if queue == "reporting":
        made |= {"readable": [], "writable": [(64 * MIB, 4 * MIB), (128 * MIB, 4 * MIB)]}
        made |= {"fills": [POISON] * 16, "poison": POISON}
    else:
        data = STATISTICS if queue == "stats" else struct.pack("<2I", 100, 101)
        made |= {"readable": [(MIB, len(data))], "writable": [], "data": data.hex()}
    return SeenChain(**{**made, **fields})


def sent(
    request: FrontendRequest, payload: Payload = None, *files: FileFact, t: float, ack: bool = True
) -> WireMessage:
    """Return a message of the front-end as it was recorded at ``t``."""
    data = build_message(request, payload)
    flags = VERSION | (HeaderFlag.NEED_REPLY if ack else 0)
    return WireMessage(
        t=t, session=1, stream=Channel.FRONTEND_REQUESTS, request=request, flags=flags, payload=data[12:], files=files
    )


REGION = MemoryRegion(guest_address=GuestAddress(0), size=MIB, user_address=UserAddress(MIB), mmap_offset=MIB)
EVENTFD = FileFact("eventfd")


def session() -> list[Record]:
    """Return what is recorded of a front-end without a fault."""
    place = VringAddress(
        index=0, flags=0, descriptor=UserAddress(64), available=UserAddress(130), used=UserAddress(132), log=0
    )
    protocol = 1 << ProtocolFeature.REPLY_ACK | 1 << ProtocolFeature.STATUS | 1 << ProtocolFeature.LOG_SHMFD
    protocol |= 1 << ProtocolFeature.CONFIG | 1 << ProtocolFeature.CONFIGURE_MEM_SLOTS
    protocol |= 1 << ProtocolFeature.INBAND_NOTIFICATIONS | 1 << ProtocolFeature.BACKEND_REQ
    asks = build_message(BackendRequest.CONFIG_CHANGE_MSG)
    request = FrontendRequest
    return [
        sent(request.SET_PROTOCOL_FEATURES, protocol, t=0.1, ack=False),
        sent(request.SET_STATUS, 1, t=0.2),
        sent(request.SET_STATUS, 3, t=0.3),
        sent(request.SET_FEATURES, FEATURES, t=0.4),
        sent(request.SET_STATUS, 11, t=0.5),
        sent(request.SET_CONFIG, DeviceConfig(offset=12, flags=0, data=b"\xaa" * 4), t=0.6),
        sent(request.SET_MEM_TABLE, MemoryTable((REGION,)), FileFact("memfd", 2 * MIB), t=0.7),
        sent(request.ADD_MEM_REG, REGION, FileFact("memfd", 2 * MIB), t=0.71),
        sent(request.REM_MEM_REG, REGION, t=0.72),
        sent(request.SET_LOG_BASE, LogDescription(size=MIB, offset=0), FileFact("memfd", MIB), t=0.73),
        sent(request.SET_VRING_NUM, VringState(0, 8), t=0.8),
        sent(request.SET_VRING_ADDR, place, t=0.81),
        sent(request.SET_VRING_CALL, VringFile(0, False), t=0.82),
        sent(request.SET_VRING_KICK, VringFile(0, True), EVENTFD, t=0.83),
        sent(request.SET_VRING_ENABLE, VringState(0, 1), t=0.84),
        started(0.85),
        sent(request.SET_STATUS, 15, t=0.9),
        sent(request.VRING_KICK, VringState(0, 0), t=1.0),
        Signal(t=1.1, session=1, ring=0, what="kick"),
        taken(0, 0, 1, t=1.2),
        taken(2, 2, t=1.3),
        UsedChain(t=1.4, session=1, ring=0, head=0, length=0, call=True),
        UsedChain(t=1.5, session=1, ring=0, head=2, length=0, call=True),
        taken(3, 3, t=1.6),
        WireMessage(
            t=1.7,
            session=1,
            stream=Channel.BACKEND_REQUESTS,
            request=BackendRequest.CONFIG_CHANGE_MSG,
            flags=VERSION | HeaderFlag.NEED_REPLY,
            payload=asks[12:],
        ),
        answered(),
    ]


def answered(request: int = BackendRequest.CONFIG_CHANGE_MSG, payload: bytes = bytes(8)) -> WireMessage:
    """Return the front-end's answer to the back-end's request."""
    stream = Channel.FRONTEND_REPLIES
    return WireMessage(t=1.8, session=1, stream=stream, request=request, flags=5, payload=payload)


def started(t: float) -> RingStart:
    """Return the start of a ring of 8 entries."""
    return RingStart(
        t=t,
        session=1,
        ring=0,
        queue="inflate",
        size=8,
        packed=False,
        base=0,
        event_idx=True,
        indirect_desc=False,
        in_order=True,
    )


def taken(head: int, *places: int, t: float) -> TakenChain:
    """Return a buffer of descriptors at ``places``."""
    descriptors = tuple(RecordedDescriptor(place, 0x1000, 64, 0, 0) for place in places)
    return TakenChain(t=t, session=1, ring=0, queue="inflate", head=head, descriptors=descriptors)


def with_records(*records: Record, without: tuple[FrontendRequest, ...] = ()) -> Observed:
    """Return a well-behaved driver whose session has more records at its end, and no messages of some requests."""
    seen = well_behaved()
    kept = [one for one in seen.records if not (isinstance(one, WireMessage) and one.request in without)]
    seen.records = [*kept, *records]
    return seen


def well_behaved() -> Observed:
    """Return what a driver without a fault shows."""
    seen = Observed(offered=FEATURES | 1 << UNKNOWN_FEATURE, accepted=FEATURES, records=session())
    seen.events = [
        {"event": "features", "t": 1.0, "negotiated": FEATURES},
        {"event": "hinting", "t": 4.0, "state": "start", "command_id": 2},
        {"event": "hinting", "t": 5.0, "state": "done"},
    ]
    seen.faults = [{"fault": "deflated_filled", "pages": 32, "absent": 0, "filled": 32}]
    seen.chains = [
        chain("stats"),
        chain("stats"),
        chain("reporting"),
        chain("free_page", readable=[(MIB, 4)], data="02000000", t=4.2),
        chain("free_page", readable=[], writable=[(64 * MIB, 4 * MIB)], data="", t=4.3),
        chain("free_page", readable=[(MIB, 4)], data="00000000", t=4.4),
        chain("stats", t=5.5),
        chain("inflate"),
        chain("deflate"),
    ]
    seen.marks = {"balloon": 8192, "reached": 8192, "left": 0, "statistics": 1, "ended_by_us": True}
    seen.marks |= {"hints": 4.0, "hinted": 5.0, "kept_from": 6.0, "kept_to": 6.5, "hung_up": True}
    return seen


def verdict_on(seen: Observed, case: str) -> tuple[Verdict, str]:
    """Return the verdict of a case, and its reason."""
    try:
        DRIVER_CASES[case].run(seen)
    except Outcome as outcome:
        return outcome.verdict, outcome.reason
    return Verdict.PASS, ""


def replaced(queue: str, number: int, **fields: Any) -> Observed:
    """Return a well-behaved driver but for one chain of a queue."""
    seen = well_behaved()
    places = [at for at, one in enumerate(seen.chains) if one.queue == queue]
    seen.chains[places[number]] = chain(queue, **fields)
    return seen


def with_event(name: str, **fields: Any) -> Observed:
    """Return a well-behaved driver, and one more event."""
    seen = well_behaved()
    seen.events.append({"event": name, "t": 4.0, **fields})
    return seen


def with_fault(name: str, **fields: Any) -> Observed:
    """Return a well-behaved driver, and something that the device noticed."""
    seen = well_behaved()
    seen.faults.append({"fault": name, **fields})
    return seen


def with_marks(**marks: Any) -> Observed:
    """Return a well-behaved driver in another scenario."""
    seen = well_behaved()
    seen.marks |= marks
    return seen


def with_features(features: int) -> Observed:
    """Return a driver that accepted these features."""
    seen = well_behaved()
    seen.events = [{"event": "features", "t": 1.0, "negotiated": features}]
    return seen
