"""How a driver brings the device up: device status, rings, the configuration space, and features."""

from collections.abc import Iterator

from protocol.recording.records import KICK, Signal, TakenChain
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig, VringAddress, VringState
from protocol.virtio import DeviceStatus, FeatureBit, has_feature, status_names
from protocol.virtio_balloon import CONFIG_POISON_VAL, BalloonFeature
from protocol.virtio_ring import QUEUE_SIZE_MAX
from scripts.check.driver.observation import UNKNOWN_FEATURE, Observed
from scripts.check.driver.suite import SUITE
from scripts.check.verdict import Failed, require, skip


def _statuses(seen: Observed) -> list[tuple[float, int]]:
    found = [
        (message.t, payload)
        for message, payload in seen.requests(FrontendRequest.SET_STATUS)
        if isinstance(payload, int)
    ]
    if not found:
        skip("the front-end sends no SET_STATUS")
    return found


@SUITE.case("driver-status", clauses=("G-4",))
def status(seen: Observed) -> None:
    """The driver clears no bit of the device status but by a reset, which follows where it has set FAILED."""
    before = 0
    for _, after in _statuses(seen):
        cleared = before & ~after if after else 0
        require(not cleared, f"the status went from {before:#x} to {after:#x}: {_names(cleared)} was cleared", "G-4")
        if before & DeviceStatus.FAILED and after:
            raise Failed(f"the status became {after:#x} after FAILED, and no reset came", "G-4")
        before = after


def _names(bits: int) -> str:
    return ", ".join(status_names(bits))


@SUITE.case("driver-ok-first", clauses=("G-18",))
def driver_ok_first(seen: Observed) -> None:
    """DRIVER_OK comes after FEATURES_OK, and no queue is kicked before it."""
    times = [(t, word) for t, word in _statuses(seen) if word & DeviceStatus.DRIVER_OK]
    if not times:
        raise Failed("the driver never set DRIVER_OK", "G-18")
    begin, word = times[0]
    if seen.has(FeatureBit.VERSION_1):
        require(bool(word & DeviceStatus.FEATURES_OK), f"DRIVER_OK came without FEATURES_OK: {word:#x}", "G-18")
    for record in seen.records:
        if isinstance(record, Signal) and record.what == KICK and record.t < begin:
            ahead = begin - record.t
            raise Failed(f"queue {record.ring} was kicked {ahead * 1000:.1f} ms before DRIVER_OK", "G-18")


@SUITE.case("driver-unknown-feature", clauses=("G-6",))
def unknown_feature(seen: Observed) -> None:
    """The driver works although a feature is offered that it cannot know."""
    if not seen.offered >> UNKNOWN_FEATURE & 1:
        skip("no unknown feature was offered")
    if not seen.chains:
        raise Failed(f"bit {UNKNOWN_FEATURE} was offered, which has no meaning, and the driver sent no buffer", "G-6")


@SUITE.case("driver-ring-places", clauses=("S-1", "P-1"))
def ring_places(seen: Observed) -> None:
    """The parts of each ring are aligned, and its size is one that its format has."""
    packed = seen.has(FeatureBit.RING_PACKED)
    clause = "P-1" if packed else "S-1"
    aligned = (16, 4, 4) if packed else (16, 2, 4)
    places = seen.requests(FrontendRequest.SET_VRING_NUM, FrontendRequest.SET_VRING_ADDR)
    if not places:
        skip("the front-end set up no queue")
    for _, payload in places:
        match payload:
            case VringState(index=index, num=size):
                whole = packed or size & (size - 1) == 0
                require(whole and 0 < size <= QUEUE_SIZE_MAX, f"queue {index} has {size} entries", clause)
            case VringAddress(index=index):
                parts = (payload.descriptor, payload.available, payload.used)
                for address, alignment in zip(parts, aligned, strict=True):
                    require(address % alignment == 0, f"queue {index}: {address:#x} is not at {alignment}", clause)


def _poison_writes(seen: Observed) -> Iterator[tuple[float, int]]:
    for message, payload in seen.requests(FrontendRequest.SET_CONFIG):
        if isinstance(payload, DeviceConfig):
            at = CONFIG_POISON_VAL.start - payload.offset
            if 0 <= at <= len(payload.data) - len(CONFIG_POISON_VAL):
                yield message.t, int.from_bytes(payload.data[at : at + len(CONFIG_POISON_VAL)], "little")


def _begin(seen: Observed) -> float:
    # When the driver has begun. Without a status: when the first buffer came; Linux offers one of statistics before.
    for message, payload in seen.requests(FrontendRequest.SET_STATUS):
        if isinstance(payload, int) and payload & DeviceStatus.DRIVER_OK:
            return message.t
    chains = (one.t for one in seen.records if isinstance(one, TakenChain) and one.queue != "stats")
    return next(chains, float("inf"))


@SUITE.case("driver-poison-written", clauses=("BP-2", "BP-3"))
def poison_written(seen: Observed) -> None:
    """With PAGE_POISON the poison is written before DRIVER_OK, and stays as it is."""
    if not seen.has(BalloonFeature.PAGE_POISON):
        skip("the driver did not negotiate PAGE_POISON")
    begin = _begin(seen)
    writes = list(_poison_writes(seen))
    before = [poison for t, poison in writes if t < begin]
    if not before:
        when = f"{(writes[0][0] - begin) * 1000:.1f} ms after the driver had begun" if writes else "never"
        raise Failed(f"the poison was written {when}", "BP-2")
    for t, poison in writes:
        if t > begin and poison != before[-1]:
            raise Failed(f"the poison went from {before[-1]:#x} to {poison:#x} while DRIVER_OK was set", "BP-3")


@SUITE.case("driver-optional-fields", clauses=("G-13",))
def optional_fields(seen: Observed) -> None:
    """The driver writes the poison only where PAGE_POISON is offered."""
    if has_feature(seen.offered, BalloonFeature.PAGE_POISON):
        skip("every field of the configuration space belongs to a feature that is offered")
    for _, payload in seen.requests(FrontendRequest.SET_CONFIG):
        # A front-end may send the whole space for one field of it, as QEMU does.
        if isinstance(payload, DeviceConfig) and payload.offset in CONFIG_POISON_VAL:
            raise Failed(f"{len(payload.data)} bytes were written at {payload.offset}, the poison's", "G-13")


@SUITE.case("driver-refused-nothing", clauses=("G-18",))
def refused_nothing(seen: Observed) -> None:
    """The device had to refuse no message."""
    refused = seen.named("message_refused")
    if refused:
        raise Failed(f"{refused[0].get('request')} was refused: {refused[0].get('reason')}", "G-18")
