"""The session's state machine, message by message: answers, acknowledgements, refusals, and what survives what."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.balloon.offered_features import OFFERED
from host.vhost_user.actions import StartRing, StopRing
from host.vhost_user.mem_slots import MEM_SLOTS
from host.vhost_user.session import OFFERED_PROTOCOL_FEATURES, MustClose
from protocol.balloon_config import BalloonConfig
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import DeviceConfig, MemoryTable, VringFile, VringState
from tests.pair.session import FEATURES, MIB, PROTOCOL_FEATURES, REGION, Shell, negotiated, set_up
from tests.protocol.messages import raw

ACK, NACK = (bytes(8), b"\1" + bytes(7))


def reply(
    shell: Shell, request: int, payload: bytes = b"", *, flags: int = 0x9, fds: tuple[int, ...] = ()
) -> bytes | None:
    """Send bytes; return the payload of the reply, None without one. Its header is checked."""
    answer = shell.receive(raw(request, payload, flags=flags), fds)
    if answer is None:
        return None
    assert answer[:12] == struct.pack("<III", request, 0x5, len(answer) - 12)
    return answer[12:]


def u64(value: int) -> bytes:
    """Return the payload of one 64-bit number."""
    return struct.pack("<Q", value)


# -- what is always answered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0x1, 0x9])
def test_question_has_one_answer_whether_an_acknowledgement_is_asked_for_or_not(flags: int) -> None:
    shell = Shell()
    assert reply(shell, 1, flags=flags) == u64(0x1_7400_0026)
    assert reply(shell, 15, flags=flags) == u64(
        1 << 0
        | 1 << 1
        | 1 << 3
        | 1 << 5
        | 1 << 9
        | 1 << 12
        | 1 << 13
        | 1 << 14
        | 1 << 15
        | 1 << 16
        | 1 << 19
        | 1 << 20
        | 1 << 23
    )
    assert reply(shell, 17, flags=flags) == u64(5)
    assert reply(shell, 36, flags=flags) == u64(509)
    assert reply(shell, 11, bytes(8), flags=flags) == bytes(8)
    assert reply(shell, 24, struct.pack("<III", 0, 4, 0) + bytes(4), flags=flags) is not None


def test_offered_bits_stay_the_same_after_any_negotiation() -> None:
    shell = negotiated()
    assert shell.ask(FrontendRequest.GET_FEATURES) == OFFERED
    assert shell.ask(FrontendRequest.GET_PROTOCOL_FEATURES) == OFFERED_PROTOCOL_FEATURES
    assert shell.ask(FrontendRequest.GET_MAX_MEM_SLOTS) == MEM_SLOTS


@pytest.mark.parametrize("offered", [0, 1 << 5, 1 << 1 | 1 << 5, 1 << 1 | 1 << 3 | 1 << 5])
def test_driver_may_ask_for_five_queues_with_any_offer(offered: int) -> None:
    assert Shell(OFFERED & ~(1 << 1 | 1 << 5) | offered).ask(FrontendRequest.GET_QUEUE_NUM) == 5


# -- acknowledgements -------------------------------------------------------------------------------------------------


def test_message_that_negotiates_acknowledgements_is_acknowledged_itself() -> None:
    assert reply(Shell(), 16, u64(PROTOCOL_FEATURES)) == ACK


def test_acknowledgement_needs_negotiation() -> None:
    shell = Shell()
    assert reply(shell, 3) is None
    assert reply(shell, 2, u64(FEATURES)) is None
    assert reply(shell, 1000) is None
    assert reply(shell, 16, u64(PROTOCOL_FEATURES & ~(1 << 3))) is None


def test_acknowledgement_is_for_the_messages_that_ask_once_negotiated() -> None:
    shell = negotiated()
    assert reply(shell, 3) == ACK
    assert reply(shell, 3, flags=0x1) is None


def test_owners_come_any_time_and_go_without_anything_being_lost() -> None:
    shell = negotiated()
    set_up(shell, 2)
    assert (reply(shell, 3), reply(shell, 4), reply(shell, 3)) == (ACK, ACK, ACK)
    assert shell.take_done() == []
    assert 2 in shell.running
    assert shell.session.features == FEATURES


@pytest.mark.parametrize("request_number", [0, 19, 20, 22, 23, 26, 28, 33, 41, 44, 1000, 2**32 - 1])
def test_unknown_request_is_answered_with_one_if_it_asks_and_passed_over_if_not(request_number: int) -> None:
    shell = negotiated()
    assert reply(shell, request_number, bytes(8), fds=(66,)) == NACK
    assert reply(shell, request_number, flags=0x1) is None
    assert shell.take_done() == [f"message_refused {request_number}"] * 2
    assert shell.closed == [66]
    assert reply(shell, 1, flags=0x1) == u64(OFFERED)


@pytest.mark.parametrize(
    "name", ["SET_LOG_FD", "SET_INFLIGHT_FD", "SET_STATUS", "VRING_KICK", "SET_LOG_BASE", "SET_DEVICE_STATE_FD"]
)
def test_request_whose_feature_was_not_offered_is_refused_and_its_descriptor_closed(name: str) -> None:
    shell = negotiated()
    number = FrontendRequest[name]
    size = {"SET_LOG_FD": 0, "SET_INFLIGHT_FD": 24, "SET_LOG_BASE": 16}.get(name, 8)
    fds = () if name in ("SET_STATUS", "VRING_KICK") else (66,)
    refusal = u64(0x101) if name == "SET_DEVICE_STATE_FD" else NACK  # with "no descriptor" in bit 8
    assert reply(shell, number, bytes(size), fds=fds) == refusal
    assert shell.take_done() == [f"message_refused {name}"]
    assert shell.closed == list(fds)


@pytest.mark.parametrize("flags", [0x1, 0x9])
@pytest.mark.parametrize("number", [1, 15, 17, 36, 40])
def test_refusal_without_an_answer_ends_the_session(number: int, flags: int) -> None:
    # The sender would take any payload for the answer, and without one it waits for ever.
    with pytest.raises(MustClose):
        reply(negotiated(), number, bytes(24 if number == 31 else 1), flags=flags)


def test_inflight_file_that_cannot_be_had_has_no_size() -> None:
    shell = negotiated()
    assert reply(shell, 31, bytes(24), flags=0x1) == bytes(24)
    assert shell.take_done() == ["message_refused GET_INFLIGHT_FD"]


def test_get_vring_base_of_no_queue_ends_the_session() -> None:
    with pytest.raises(MustClose, match="queue 5 does not exist"):
        reply(negotiated(), 11, struct.pack("<II", 5, 0), flags=0x1)


# -- negotiation ------------------------------------------------------------------------------------------------------


def test_features_may_be_set_before_they_are_asked_for() -> None:
    shell = Shell()
    assert reply(shell, 2, u64(FEATURES), flags=0x1) is None
    assert reply(shell, 16, u64(PROTOCOL_FEATURES)) == ACK
    assert shell.session.features == FEATURES


@given(bits=st.integers(0, 2**64 - 1))
def test_features_are_taken_exactly_if_they_were_offered(bits: int) -> None:
    shell = negotiated()
    good = bits & ~OFFERED == 0
    assert reply(shell, 2, u64(bits)) == (ACK if good else NACK)
    assert shell.session.features == (bits if good else FEATURES)


@given(subset=st.sets(st.sampled_from([2, 5, 28, 29, 30])))
def test_features_that_are_a_subset_of_the_offer_with_version_1_are_taken(subset: set[int]) -> None:
    shell = negotiated()
    bits = 1 << 32 | sum(1 << bit for bit in subset)
    assert reply(shell, 2, u64(bits)) == ACK
    assert shell.session.features == shell.session.balloon.features == bits


@pytest.mark.parametrize("bit", [2, 8, 21, 22, 24, 63])
def test_protocol_feature_that_was_not_offered_keeps_the_old_set(bit: int) -> None:
    shell = negotiated()
    assert reply(shell, 16, u64(PROTOCOL_FEATURES | 1 << bit)) == NACK
    assert shell.session.protocol_features == PROTOCOL_FEATURES


def test_stop_that_skips_draining_needs_the_record_of_chains_in_flight() -> None:
    shell = negotiated()
    for missing in (1 << 12, 1 << 20):
        without = (PROTOCOL_FEATURES | 1 << 12 | 1 << 20 | 1 << 23) & ~missing
        assert reply(shell, 16, u64(without)) == NACK
        assert shell.session.protocol_features == PROTOCOL_FEATURES


@pytest.mark.parametrize(
    ("bits", "request_number", "drains"),
    [((), 11, True), ((20,), 11, False), ((12, 20, 23), 11, True), ((12, 20, 23), 45, False)],
)
def test_ring_is_stopped_without_draining_if_that_was_negotiated_and_asked_for(
    bits: tuple[int, ...], request_number: int, drains: bool
) -> None:
    shell = negotiated()
    assert reply(shell, 16, u64(PROTOCOL_FEATURES | sum(1 << bit for bit in bits))) == ACK
    set_up(shell, 2)
    assert reply(shell, request_number, struct.pack("<II", 2, 0)) == struct.pack("<II", 2, 0)
    stops = [action for action in shell.actions if isinstance(action, StopRing)]
    assert stops[-1] == StopRing(2, drain=drains)


def test_queue_that_was_negotiated_away_is_only_answered() -> None:
    shell = negotiated()
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES & ~(1 << 5))
    shell.ring("NUM", 2, 256)
    shell.ring("ADDR", 2)
    shell.ring("KICK", 2, 12)
    assert shell.ring("ENABLE", 2, 1) == 0
    assert shell.running[2].queue is None


def test_rings_know_the_features_they_run_with() -> None:
    shell = negotiated()
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES & ~(1 << 29))
    set_up(shell, 2)
    assert not shell.running[2].features.event_idx
    assert shell.running[2].features.indirect_desc


# -- configuration space ----------------------------------------------------------------------------------------------


@given(offset=st.integers(0, 256), length=st.integers(0, 256), flags=st.integers(0, 3))
@settings(max_examples=60)
def test_configuration_space_is_answered_in_full_for_any_window_up_to_256_bytes(
    offset: int, length: int, flags: int
) -> None:
    shell = Shell()
    shell.session.balloon.config = BalloonConfig(num_pages=0x01020304)
    whole = BalloonConfig(num_pages=0x01020304).build() + bytes(512)
    answer = reply(shell, 24, struct.pack("<III", offset, length, flags) + bytes(length), flags=0x1)
    if offset + length > 256:
        assert answer == b""  # "a zero length payload in case of error"
    else:
        assert answer == struct.pack("<III", offset, length, flags) + whole[offset : offset + length]


@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize(("offset", "data"), [(0, struct.pack("<4I", 11, 22, 33, 44)), (4, struct.pack("<I", 22))])
def test_driver_writes_actual_and_nothing_else(flags: int, offset: int, data: bytes) -> None:
    shell = negotiated()
    assert shell.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=offset, flags=flags, data=data)) == 0
    assert shell.session.balloon.config == BalloonConfig(actual=22)


def test_write_beyond_256_bytes_is_refused() -> None:
    shell = negotiated()
    assert shell.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=4, flags=0, data=b"\xff" * 253)) == 1
    assert shell.session.balloon.config == BalloonConfig()


WITH_POISON = OFFERED | 1 << 4


def test_second_driver_may_set_another_poison_value_once_all_rings_have_stopped() -> None:
    shell = Shell(WITH_POISON)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    shell.memory(REGION)
    balloon = shell.session.balloon
    poison = [DeviceConfig(offset=12, flags=0, data=bytes([value] * 4)) for value in (0, 0xAA)]
    assert shell.ask(FrontendRequest.SET_CONFIG, poison[0]) == 0  # before SET_FEATURES, as QEMU does
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES | 1 << 4)
    set_up(shell, 0)
    set_up(shell, 2)
    balloon.settled_for = balloon.drivers  # as the first chain does
    for index in (0, 2):
        assert shell.ask(FrontendRequest.SET_CONFIG, poison[1]) == 0
        assert balloon.config.poison_val == 0
        shell.ask(FrontendRequest.GET_VRING_BASE, VringState(index, 0))
    assert shell.ask(FrontendRequest.SET_CONFIG, poison[1]) == 0
    assert balloon.config.poison_val == 0xAAAA_AAAA


def test_qemus_write_of_a_new_size_tells_no_poison_value_to_a_device_that_took_over() -> None:
    shell = Shell(WITH_POISON)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES | 1 << 4)
    shell.memory(REGION)
    set_up(shell, 0)
    window = BalloonConfig(actual=7).build()
    assert shell.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=0, flags=0, data=window)) == 0
    assert (shell.session.balloon.config.actual, shell.session.balloon.poison_told) == (7, False)


def test_target_that_changes_is_told_to_a_driver_that_listens() -> None:
    shell = negotiated()
    assert shell.change_config(num_pages=100) is None
    assert shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,)) == 0
    assert shell.change_config(num_pages=200) is None  # no ring runs: the driver is not notified
    set_up(shell, 0)
    assert shell.change_config(num_pages=300) == raw(2, flags=0x1)
    assert shell.session.balloon.config.num_pages == 300


# -- memory -----------------------------------------------------------------------------------------------------------


def spread(number: int) -> MemoryRegion:
    """Return one of many regions that do not overlap."""
    start = (number + 1) << 32
    return MemoryRegion(guest_address=GuestAddress(start), size=MIB, user_address=UserAddress(start), mmap_offset=0)


@pytest.mark.parametrize(("count", "answer"), [(0, 0), (1, 0), (8, 0), (9, 1)])
def test_table_has_at_most_eight_regions(count: int, answer: int) -> None:
    shell = negotiated()
    assert shell.memory(*map(spread, range(count))) == answer
    assert len(shell.session.table.regions) == (count if answer == 0 else 1)


def test_memory_slots_are_as_many_as_the_answer_says() -> None:
    shell = negotiated()
    for number in range(508):
        assert shell.ask(FrontendRequest.ADD_MEM_REG, spread(number), (100,)) == 0
    assert shell.ask(FrontendRequest.ADD_MEM_REG, spread(600), (101,)) == 1
    assert shell.closed == [101]
    assert shell.ask(FrontendRequest.REM_MEM_REG, spread(7)) == 0
    assert shell.ask(FrontendRequest.ADD_MEM_REG, spread(600), (102,)) == 0


def test_table_with_too_few_descriptors_keeps_the_old_one() -> None:
    shell = negotiated()
    assert shell.ask(FrontendRequest.SET_MEM_TABLE, MemoryTable((spread(1), spread(2))), (5,)) == 1
    assert shell.session.table.regions == (REGION,)
    assert shell.closed == [5]


# -- rings ------------------------------------------------------------------------------------------------------------


def test_base_has_sixteen_bits() -> None:
    shell = negotiated()
    set_up(shell, 2, base=0x8000_0007)
    assert shell.running[2].base == 7


def test_packed_base_has_thirty_two_bits() -> None:
    shell = Shell(OFFERED | 1 << 34)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES | 1 << 34)
    shell.memory(REGION)
    set_up(shell, 2, base=0x8005_0007)
    assert shell.running[2].base == 0x8005_0007
    assert shell.running[2].features.packed
    assert shell.running[2].place.packed
    shell.base[2] = 0x0001_8002
    assert shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0)) == VringState(2, 0x0001_8002)


def test_base_is_told_back_as_wide_as_it_counts() -> None:
    shell = negotiated()
    shell.ring("BASE", 2, 0x8000_0007)
    assert shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0)) == VringState(2, 7)


def test_ring_that_cannot_be_mapped_is_refused_and_started_when_it_can() -> None:
    shell = negotiated()
    shell.ring("NUM", 2, 256)
    shell.ring("ADDR", 2)
    shell.ring("KICK", 2, 12)
    shell.failing = {StartRing}
    assert shell.ring("ENABLE", 2, 1) == 1
    assert shell.take_done() == ["kick 2 fd 12", "queue_stopped 2", "message_refused SET_VRING_ENABLE"]
    shell.failing = set()
    assert shell.memory(REGION) == 0
    assert shell.take_done()[1:] == ["start 2 reporting at 0"]


def test_ring_that_cannot_be_mapped_is_complained_about_once() -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.failing = {StartRing}
    shell.memory(REGION)
    shell.memory(REGION)
    assert shell.take_done().count("queue_stopped 2") == 1


def test_broken_ring_stops_alone_and_runs_again_when_it_is_set_up_anew() -> None:
    shell = negotiated()
    set_up(shell, 0)
    set_up(shell, 2)
    shell.ring_broke(2)
    assert shell.take_done() == ["stop 2"]
    assert shell.memory(REGION) == 0
    assert shell.ring("ENABLE", 2, 1) == 0
    assert list(shell.running) == [0]
    set_up(shell, 2)


def test_ring_that_broke_and_was_stopped_meanwhile_is_not_stopped_twice() -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0))
    shell.take_done()
    shell.ring_broke(2)
    assert shell.take_done() == []


@pytest.mark.parametrize("name", ["KICK", "CALL", "ERR"])
def test_ring_file_of_no_queue_is_refused_and_closed(name: str) -> None:
    shell = negotiated()
    assert shell.ask(FrontendRequest[f"SET_VRING_{name}"], VringFile(5, True), (77,)) == 1
    assert shell.closed == [77]


def test_message_of_the_other_direction_is_refused() -> None:
    shell = negotiated()
    assert shell.handle(Message(request=BackendRequest.VRING_CALL, payload=VringState(0, 0))) is None
    assert len(shell.take_done()) == 1
