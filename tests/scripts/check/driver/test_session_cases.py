"""The cases about messages, status and rings over sessions made by hand: each wrong is found."""

import pytest

from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.recording.records import FileFact, Noise, Signal, WireMessage
from protocol.vhost_user import VERSION, BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Channel
from protocol.vhost_user_payloads import (
    DeviceConfig,
    LogDescription,
    MemoryTable,
    VringAddress,
    VringFile,
    VringState,
)
from scripts.check.driver.observation import UNKNOWN_FEATURE, Observed
from scripts.check.verdict import Verdict
from tests.scripts.check.driver.observed import (
    EVENTFD,
    FEATURES,
    MIB,
    REGION,
    answered,
    sent,
    taken,
    verdict_on,
    well_behaved,
    with_marks,
    with_records,
)

FAIL, FINDING, NOT_EXERCISED = Verdict.FAIL, Verdict.FINDING, Verdict.NOT_EXERCISED
R = FrontendRequest
NOISE = Noise(t=2.0, session=1, stream=Channel.FRONTEND_REQUESTS, data=b"\xff" * 20)
SHORT = WireMessage(
    t=2.0, session=1, stream=Channel.FRONTEND_REQUESTS, request=R.SET_FEATURES, flags=VERSION, payload=b"1"
)
HIGH = MemoryRegion(guest_address=GuestAddress(1 << 40), size=MIB, user_address=UserAddress(MIB), mmap_offset=0)
CROOKED = VringAddress(
    index=0, flags=0, descriptor=UserAddress(8), available=UserAddress(130), used=UserAddress(132), log=0
)


def poison(value: bytes, t: float) -> Observed:
    """Return a driver that writes the poison once more at ``t``."""
    return with_records(sent(R.SET_CONFIG, DeviceConfig(offset=12, flags=0, data=value), t=t))


def late_poison() -> Observed:
    """Return a driver that writes the poison at 2.0 alone."""
    message = sent(R.SET_CONFIG, DeviceConfig(offset=12, flags=0, data=b"\xaa" * 4), t=2.0)
    seen = with_records(without=(R.SET_CONFIG,))
    seen.records.append(message)
    return seen


def unanswered() -> Observed:
    """Return a front-end that leaves a request of the back-end without an answer."""
    seen = well_behaved()
    seen.records.remove(answered())
    return seen


def not_asked_for_poison() -> Observed:
    """Return a driver that writes the poison although PAGE_POISON is not offered."""
    seen = well_behaved()
    seen.offered &= ~(1 << 4)
    return seen


def early_kick() -> Observed:
    """Return a driver that kicks before DRIVER_OK."""
    seen = well_behaved()
    seen.records.append(Signal(t=0.86, session=1, ring=0, what="kick"))
    return seen


def idle() -> Observed:
    """Return a driver that accepted features and did nothing more."""
    seen = well_behaved()
    seen.chains = []
    return seen


def accepting(features: int) -> Observed:
    """Return a driver that accepted ``features`` more than were offered."""
    seen = well_behaved()
    seen.accepted |= features
    return seen


@pytest.mark.parametrize(
    ("case", "seen", "verdict", "words"),
    [
        ("driver-messages", with_records(NOISE), FAIL, "20 bytes are no message: ffffffff"),
        ("driver-messages", with_records(SHORT), FAIL, "SET_FEATURES: "),
        ("driver-messages-negotiated", with_records(without=(R.SET_PROTOCOL_FEATURES,)), FAIL, "was not negotiated"),
        (
            "driver-messages-negotiated",
            with_records(without=tuple(one for one in R if one is not R.SET_VRING_NUM)),
            FAIL,
            "SET_VRING_NUM has NEED_REPLY",
        ),
        (
            "driver-messages-negotiated",
            with_records(sent(R.SET_PROTOCOL_FEATURES, 8, t=0.1), without=tuple(R)),
            FINDING,
            "has NEED_REPLY itself",
        ),
        (
            "driver-memory-table",
            with_records(sent(R.SET_MEM_TABLE, MemoryTable((REGION, HIGH)), EVENTFD, t=2.0)),
            FAIL,
            "2 regions came with 1 descriptors",
        ),
        (
            "driver-memory-table",
            with_records(sent(R.SET_MEM_TABLE, MemoryTable((REGION,)), FileFact("memfd", MIB), t=2.0)),
            FAIL,
            "ends at 0x200000 of a file of 0x100000 bytes",
        ),
        ("driver-memory-slots", with_records(sent(R.ADD_MEM_REG, REGION, t=2.0)), FAIL, "with 0 descriptors"),
        ("driver-memory-slots", with_records(sent(R.REM_MEM_REG, REGION, EVENTFD, t=2.0)), FINDING, "1 descriptors"),
        (
            "driver-descriptors-told",
            with_records(sent(R.SET_VRING_CALL, VringFile(0, False), EVENTFD, t=2.0)),
            FAIL,
            "SET_VRING_CALL of queue 0 has bit 8 set and 1 descriptors",
        ),
        (
            "driver-descriptors-told",
            with_records(sent(R.SET_VRING_KICK, VringFile(0, True), t=2.0)),
            FAIL,
            "bit 8 clear and 0 descriptors",
        ),
        (
            "driver-enable-negotiated",
            with_records(
                sent(R.SET_FEATURES, FEATURES & ~(1 << 30), t=2.0), sent(R.SET_VRING_ENABLE, VringState(0, 1), t=2.1)
            ),
            FINDING,
            "without bit 30",
        ),
        (
            "driver-in-band-kick",
            with_records(sent(R.VRING_KICK, VringState(1, 3), t=2.0)),
            FAIL,
            "has the number 3",
        ),
        ("driver-queue-count", with_records(sent(R.SET_VRING_NUM, VringState(9, 8), t=2.0)), FINDING, "10 queues"),
        (
            "driver-log",
            with_records(
                sent(R.ADD_MEM_REG, HIGH, EVENTFD, t=2.0),
                sent(R.SET_LOG_BASE, LogDescription(size=4096, offset=0), EVENTFD, t=2.1),
            ),
            FINDING,
            "the log has 4096 bytes",
        ),
        ("driver-answers", unanswered(), FAIL, "1 requests needed a reply, and 0 came"),
        ("driver-hangs-up", with_marks(hung_up=False), FAIL, "went on"),
        ("driver-status", with_records(sent(R.SET_STATUS, 7, t=2.0)), FAIL, "FEATURES_OK was cleared"),
        (
            "driver-status",
            with_records(sent(R.SET_STATUS, 0x8F, t=2.0), sent(R.SET_STATUS, 0x8F, t=2.1)),
            FAIL,
            "no reset came",
        ),
        ("driver-ok-first", early_kick(), FAIL, "40.0 ms before DRIVER_OK"),
        ("driver-ok-first", with_records(sent(R.SET_STATUS, 1, t=2.0), without=(R.SET_STATUS,)), FAIL, "never"),
        ("driver-unknown-feature", idle(), FAIL, "bit 55 was offered"),
        ("driver-features", accepting(1 << UNKNOWN_FEATURE), FAIL, "bit-55"),
        ("driver-features", accepting(1 << 6), FAIL, "was not offered"),
        ("driver-ring-places", with_records(sent(R.SET_VRING_NUM, VringState(0, 7), t=2.0)), FAIL, "7 entries"),
        ("driver-ring-places", with_records(sent(R.SET_VRING_ADDR, CROOKED, t=2.0)), FAIL, "0x8 is not at 16"),
        ("driver-poison-written", late_poison(), FAIL, "1100.0 ms after"),
        ("driver-poison-written", with_records(without=(R.SET_CONFIG,)), FAIL, "never"),
        ("driver-poison-written", poison(b"\0\0\0\0", 2.0), FAIL, "0xaaaaaaaa to 0x0"),
        ("driver-optional-fields", not_asked_for_poison(), FAIL, "4 bytes were written at 12"),
        ("driver-buffers-apart", with_records(taken(4, 3, 4, t=2.0)), FAIL, "descriptors [3]"),
        ("driver-in-order", with_records(taken(6, 6, t=2.0)), FAIL, "descriptor 6 was used where 4 is next"),
    ],
)
def test_wrong_session_is_found(case: str, seen: Observed, verdict: Verdict, words: str) -> None:
    found, reason = verdict_on(seen, case)
    assert found is verdict, reason
    assert words in reason


@pytest.mark.parametrize("request_number", [BackendRequest.CONFIG_CHANGE_MSG, 99])
def test_answer_has_the_number_of_its_request(request_number: int) -> None:
    seen = unanswered()
    seen.records.append(answered(request_number, bytes(4)))
    assert verdict_on(seen, "driver-answers")[0] is FAIL


def test_poison_that_is_written_again_stays() -> None:
    assert verdict_on(poison(b"\xaa" * 4, 2.0), "driver-poison-written")[0] is Verdict.PASS


def test_session_without_messages_is_not_judged() -> None:
    seen = well_behaved()
    seen.records = []
    for case in ("driver-messages", "driver-memory-table", "driver-descriptors-told", "driver-log", "driver-status"):
        assert verdict_on(seen, case)[0] is NOT_EXERCISED
