"""Each way in which a session can go wrong is named, and a good session has no fault."""

from collections.abc import Callable

import pytest

from protocol.recording.records import (
    FRONT_END,
    Lost,
    Noise,
    PutBack,
    Remark,
    RingBroken,
    RingStop,
    Signal,
)
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel, build_ack
from protocol.vhost_user_payloads import VringFile, VringState
from tests.scripts.check.recording.sessions import OFFERED, REPORTING, Tape, faults_of


def test_good_session_has_no_fault() -> None:
    tape = Tape()
    tape.ready()
    for number in range(20):
        tape.add(Signal(t=tape.now, session=1, ring=REPORTING, what="kick"))
        tape.chain(number % 16)
        tape.used(number % 16, number)
    tape.chain(0, queue="stats")
    tape.add(PutBack(t=tape.now, session=1, ring=2, head=0))
    tape.do(FrontendRequest.SET_STATUS, 0)
    tape.end()
    assert faults_of(tape.records) == []


def refused(tape: Tape) -> None:
    tape.ask(FrontendRequest.SET_VRING_NUM, VringState(1, 3))
    fields = {"request": "SET_VRING_NUM", "reason": "queue size 3 of a split ring is not a power of two"}
    tape.add(Remark(t=tape.now, session=1, event="message_refused", fields=fields))


def refused_with_an_answer(tape: Tape) -> None:
    tape.do(FrontendRequest.SET_VRING_NUM, VringState(1, 3), status=1)


def broken(tape: Tape) -> None:
    tape.add(RingBroken(t=tape.now, session=1, ring=REPORTING, reason="descriptor chain 3 is a loop"))


def not_offered(tape: Tape) -> None:
    tape.do(FrontendRequest.SET_FEATURES, OFFERED | 1 << 34)


def protocol_not_offered(tape: Tape) -> None:
    tape.ask(FrontendRequest.SET_PROTOCOL_FEATURES, 1 << 3 | 1 << 16 | 1 << 14)


def needs_a_feature(tape: Tape) -> None:
    tape.ask(FrontendRequest.VRING_KICK, VringState(REPORTING, 0))


def never_given_back(tape: Tape) -> None:
    tape.chain(3)
    tape.add(RingStop(t=tape.now, session=1, ring=REPORTING, base=1))


def never_given_back_at_the_end(tape: Tape) -> None:
    tape.chain(3)


def given_back_twice(tape: Tape) -> None:
    tape.chain(3)
    tape.used(3)
    tape.used(3, 1)


def no_call(tape: Tape) -> None:
    tape.chain(3)
    tape.used(3, call=False)


def unwanted_call(tape: Tape) -> None:
    tape.chain(3)
    tape.used(3, event=9)


def too_long(tape: Tape) -> None:
    tape.chain(3)
    tape.used(3, length=(4 << 20) + 1)


def unaligned(tape: Tape) -> None:
    for head in range(3):
        tape.chain(head, "unaligned")
        tape.used(head, head)


def second_statistics(tape: Tape) -> None:
    tape.start(2)
    tape.chain(0, queue="stats")
    tape.chain(1, queue="stats")


def indirect(tape: Tape) -> None:
    tape.chain(3, flags=4)
    tape.used(3)


def noise(tape: Tape) -> None:
    tape.add(Noise(t=tape.now, session=1, stream=Channel.FRONTEND_REQUESTS, data=b"GET"))


def lost(tape: Tape) -> None:
    tape.add(Lost(t=tape.now, session=1, count=7))


def unanswered(tape: Tape) -> None:
    tape.ask(FrontendRequest.GET_STATUS)


def not_asked_for(tape: Tape) -> None:
    tape.bytes(Channel.BACKEND_REPLIES, build_ack(FrontendRequest.SET_OWNER, 0))


def kicked_before_set_up(tape: Tape) -> None:
    tape.add(Signal(t=tape.now, session=1, ring=1, what="kick"))


def never_served(tape: Tape) -> None:
    tape.do(FrontendRequest.SET_VRING_KICK, VringFile(1, True))


def parked(tape: Tape) -> None:
    fields = {"queue": 1, "reason": "used ring of queue 1 is not in one memory region"}
    tape.add(Remark(t=tape.now, session=1, event="queue_stopped", fields=fields))


def needs_reset(tape: Tape) -> None:
    tape.ask(FrontendRequest.GET_STATUS)
    tape.reply(FrontendRequest.GET_STATUS, 79)


def struck(tape: Tape) -> None:
    tape.add(Remark(t=tape.now, session=1, event="fault", fields={"line": 3, "rule": "on SET_VRING_ENABLE drop"}))


FAULTS: dict[Callable[[Tape], None], str] = {
    refused: "SET_VRING_NUM was refused: queue size 3 of a split ring is not a power of two",
    refused_with_an_answer: "SET_VRING_NUM was refused with 1 [V-10]",
    broken: "queue 3 (reporting) is broken: descriptor chain 3 is a loop",
    not_offered: "the driver takes features that were not offered: packed [V-13 G-5]",
    protocol_not_offered: "protocol features that were not offered are used: INBAND_NOTIFICATIONS [V-15]",
    needs_a_feature: "VRING_KICK came without the protocol feature INBAND_NOTIFICATIONS",
    never_given_back: "queue 3 (reporting): a chain was never given back (chain 3, when the queue stopped)",
    never_given_back_at_the_end: "queue 3 (reporting): a chain was never given back (chain 3, at the end)",
    given_back_twice: "queue 3 (reporting): given back, and not in flight (chain 3) [S-17 P-16]",
    no_call: "queue 3 (reporting): no call although the driver wanted one (chain 3) [S-16]",
    unwanted_call: "queue 3 (reporting): a call that the driver did not want (chain 3) [S-16]",
    too_long: "queue 3 (reporting): used length 4194305 of 4194304 writable bytes (chain 3) [S-17 P-16]",
    unaligned: "queue 3 (reporting): not discarded: unaligned (chain 0: 1 range, 4.0 MiB)",
    second_statistics: "queue 2 (stats): a second buffer while the device has one (chain 1) [BS-1]",
    indirect: "queue 3 (reporting): an indirect table, which was not negotiated (chain 3) [S-6 P-13]",
    noise: "3 bytes of the front-end requests are not a message [V-1]",
    lost: "7 records are missing",
    unanswered: "GET_STATUS was never answered [V-9 V-10]",
    not_asked_for: "a reply to SET_OWNER that was not asked for [V-11]",
    kicked_before_set_up: "queue 1 was kicked but never set up: no SET_VRING_NUM and SET_VRING_ADDR [V-31]",
    never_served: "queue 1 has a kick descriptor but was never served: no SET_VRING_NUM and no SET_VRING_ADDR and no "
    "SET_VRING_ENABLE [V-31]",
    parked: "queue 1 cannot be served: used ring of queue 1 is not in one memory region",
    struck: "the proxy carried out line 3 of its script: on SET_VRING_ENABLE drop",
    needs_reset: "the device needs a reset [G-2]",
}


@pytest.mark.parametrize("happens", FAULTS, ids=lambda happens: happens.__name__)
def test_fault_is_named_once(happens: Callable[[Tape], None]) -> None:
    tape = Tape()
    tape.ready()
    happens(tape)
    tape.end()
    assert faults_of(tape.records) == [FAULTS[happens]]


def test_chain_before_driver_ok_is_a_fault_but_for_statistics() -> None:
    tape = Tape()
    tape.negotiate()
    tape.do(FrontendRequest.SET_STATUS, 11)
    tape.set_up()
    tape.chain(0, queue="stats")
    tape.chain(5)
    tape.used(5)
    tape.end()
    assert faults_of(tape.records) == ["queue 3 (reporting): a chain before DRIVER_OK (chain 5) [G-18]"]


def test_ring_before_features_is_a_fault() -> None:
    tape = Tape()
    tape.start()
    tape.end()
    assert faults_of(tape.records) == ["queue 3 (reporting) runs before features were negotiated [G-18]"]


def test_wanted_call_without_a_descriptor_is_told_once() -> None:
    tape = Tape()
    tape.ready(call=False)
    for number in range(2):
        tape.chain(3)
        tape.used(3, number)
    tape.end()
    assert faults_of(tape.records) == [
        "queue 3 (reporting): the driver wants calls, and has given no descriptor for them [V-43]"
    ]


@pytest.mark.parametrize("reason", ["front-end gone in the middle of a message", "internal error"])
def test_bad_end_is_a_fault(reason: str) -> None:
    tape = Tape()
    tape.ready()
    tape.end(reason)
    assert faults_of(tape.records) == [f"the session ended: {reason}"]


def test_what_is_open_where_a_recording_breaks_off_is_a_fault() -> None:
    tape = Tape(FRONT_END)
    tape.ready()
    tape.chain(3)
    assert faults_of(tape.records) == ["queue 3 (reporting): a chain was never given back (chain 3, at the end)"]


@pytest.mark.parametrize(
    ("event", "call", "fault"), [(1 << 16, False, ""), (1 << 16, True, "did not want"), (0, False, "wanted one")]
)
def test_packed_ring_is_judged_by_its_event_word(event: int, call: bool, fault: str) -> None:
    tape = Tape()
    tape.ready(enable=False)
    tape.start(packed=True)
    tape.chain(3)
    tape.used(3, 0x8000, event=event, call=call)
    tape.end()
    found = faults_of(tape.records)
    assert [fault in each for each in found] == [True] * bool(fault)
