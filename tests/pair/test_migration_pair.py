"""What a session makes of the messages about moving and outliving: dirty log, inflight file, device state."""

import pytest

from host.vhost_user.actions import LogRing, SetInflightFile, SetLog, StartRing
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceStateTransfer, InflightDescription, LogDescription, VringState
from tests.pair.session import FEATURES, MADE_FD, PROTOCOL_FEATURES, REGION, Shell, negotiated, ring_address, set_up

LOG_ALL = 1 << 26
PACKED = 1 << 34
ALL_PROTOCOL_FEATURES = PROTOCOL_FEATURES | 1 << 1 | 1 << 12 | 1 << 19
NOTHING = InflightDescription(mmap_size=0, mmap_offset=0, num_queues=0, queue_size=0)


@pytest.fixture
def shell() -> Shell:
    shell = negotiated()
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, ALL_PROTOCOL_FEATURES) == 0
    return shell


def log_places(shell: Shell, index: int) -> object:
    """Return where the writes of a running queue are logged, from the last action about it."""
    actions = [action for action in shell.actions if isinstance(action, StartRing | LogRing) and action.index == index]
    return actions[-1].log


def begin_logging(shell: Shell, index: int = 2) -> None:
    assert shell.ask(FrontendRequest.SET_LOG_BASE, LogDescription(4096, 0), (50,)) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES | LOG_ALL) == 0
    address = ring_address(index, flags=1)
    assert shell.ask(FrontendRequest.SET_VRING_ADDR, address) == 0


# -- the dirty log ----------------------------------------------------------------------------------------------------


def test_logging_comes_and_goes_while_the_ring_runs(shell: Shell) -> None:
    set_up(shell, 2)
    begin_logging(shell)
    assert shell.take_done() == [
        "dirty log fd 50, 4096 bytes at 0",
        f"features {FEATURES | LOG_ALL:#x}",
        "log 2 ['0x0', '0x0', '0x0']",
    ]
    assert shell.closed == [50]  # its mapping does not need it
    assert 2 in shell.running
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES) == 0
    assert shell.take_done() == [f"features {FEATURES:#x}", "log 2 off"]
    assert 2 in shell.running


def test_log_needs_the_feature_the_flag_and_nothing_else_to_begin(shell: Shell) -> None:
    set_up(shell, 2)
    address = ring_address(2, flags=1)
    assert shell.ask(FrontendRequest.SET_VRING_ADDR, address) == 0
    assert shell.take_done() == []
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES | LOG_ALL) == 0
    assert shell.take_done()[1:] == ["log 2 ['0x0', '0x0', '0x0']"]
    assert shell.ask(FrontendRequest.SET_VRING_ADDR, ring_address(2)) == 0
    assert shell.take_done() == ["log 2 off"]


def test_ring_that_starts_or_goes_on_during_a_migration_is_logged_from_its_beginning(shell: Shell) -> None:
    begin_logging(shell)
    shell.ring("NUM", 2, 256)
    shell.ring("KICK", 2, 12)
    shell.ring("ENABLE", 2, 1)
    assert log_places(shell, 2) == (0, 0, 0)
    assert shell.memory() == 0
    assert 2 not in shell.running
    assert shell.take_done()[-1] == "queue_stopped 2"


def test_packed_ring_is_logged_where_its_parts_lie() -> None:
    shell = Shell(offered=FEATURES | PACKED | LOG_ALL)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, ALL_PROTOCOL_FEATURES)
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES | PACKED | LOG_ALL) == 0
    assert shell.memory(REGION) == 0
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.SET_VRING_ADDR, ring_address(2, flags=1)) == 0
    base = REGION.guest_address + 0x20000
    assert log_places(shell, 2) == (base, base + 0x4000, base + 0x8000)


@pytest.mark.parametrize("need_reply", [True, False])
def test_log_base_is_answered_exactly_once_taken_or_refused(shell: Shell, need_reply: bool) -> None:
    payload = LogDescription(4096, 0)
    assert shell.ask(FrontendRequest.SET_LOG_BASE, payload, (50,), need_reply=need_reply) == 0
    shell.failing = {SetLog}
    assert shell.ask(FrontendRequest.SET_LOG_BASE, payload, (51,), need_reply=need_reply) == 1
    assert shell.ask(FrontendRequest.SET_LOG_BASE, payload, (), need_reply=need_reply) == 1
    assert shell.closed == [50, 51]


# -- the inflight file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "size"), [(0, 5 * 4160), (PACKED, 5 * 8256)])
def test_inflight_file_is_made_for_the_format_of_the_rings(features: int, size: int) -> None:
    shell = Shell(offered=FEATURES | features)
    shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, ALL_PROTOCOL_FEATURES)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES | features)
    wanted = InflightDescription(mmap_size=0, mmap_offset=0, num_queues=5, queue_size=256)
    answer = shell.ask(FrontendRequest.GET_INFLIGHT_FD, wanted)
    assert answer == InflightDescription(mmap_size=size, mmap_offset=0, num_queues=5, queue_size=256)
    assert MADE_FD not in shell.closed


@pytest.mark.parametrize(("queues", "size"), [(0, 256), (6, 256), (3, 0), (3, 32769)])
def test_inflight_file_for_no_queues_or_of_size_zero_is_answered_with_none(
    shell: Shell, queues: int, size: int
) -> None:
    wanted = InflightDescription(mmap_size=0, mmap_offset=0, num_queues=queues, queue_size=size)
    assert shell.ask(FrontendRequest.GET_INFLIGHT_FD, wanted) == NOTHING


TOLD = InflightDescription(mmap_size=3 * 4160, mmap_offset=0, num_queues=3, queue_size=256)


def test_inflight_file_is_recovered_from_once(shell: Shell) -> None:
    assert shell.ask(FrontendRequest.SET_INFLIGHT_FD, TOLD, (60,)) == 0
    set_up(shell, 2)
    assert shell.running[2].recovers
    assert shell.closed == []
    shell.memory()
    shell.memory(REGION)
    assert not shell.running[2].recovers


def test_rings_rest_while_their_inflight_file_is_replaced(shell: Shell) -> None:
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.SET_INFLIGHT_FD, TOLD, (60,)) == 0
    assert shell.take_done() == ["stop 2", "inflight fd 60", "start 2 reporting at 0"]
    shell.failing = {SetInflightFile}
    assert shell.ask(FrontendRequest.SET_INFLIGHT_FD, TOLD, (61,)) == 1
    assert shell.take_done() == ["stop 2", "start 2 reporting at 0", "message_refused SET_INFLIGHT_FD"]
    assert shell.closed == [61]


def test_inflight_file_too_small_for_its_queues_is_refused(shell: Shell) -> None:
    small = InflightDescription(mmap_size=3 * 4160 - 1, mmap_offset=0, num_queues=3, queue_size=256)
    assert shell.ask(FrontendRequest.SET_INFLIGHT_FD, small, (60,)) == 1
    assert shell.closed == [60]


# -- the device's state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "word"), [(0, "save"), (1, "load")])
def test_state_is_passed_while_every_ring_is_stopped(shell: Shell, direction: int, word: str) -> None:
    transfer = DeviceStateTransfer(direction, 0)
    assert shell.ask(FrontendRequest.SET_DEVICE_STATE_FD, transfer, (70,)) == 0x100
    assert shell.ask(FrontendRequest.CHECK_DEVICE_STATE) == 0
    assert shell.take_done() == [f"{word} fd 70", "finish state"]
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.SET_DEVICE_STATE_FD, transfer, (71,)) == 0x101
    assert shell.ask(FrontendRequest.CHECK_DEVICE_STATE) == 1
    assert shell.closed == [71]
    assert shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0)) == VringState(2, 0)
    assert shell.ask(FrontendRequest.SET_DEVICE_STATE_FD, transfer, (72,)) == 0x100


@pytest.mark.parametrize(("direction", "phase"), [(2, 0), (0, 1), (1, 2**32 - 1)])
def test_unknown_directions_and_phases_are_refused(shell: Shell, direction: int, phase: int) -> None:
    transfer = DeviceStateTransfer(direction, phase)
    assert shell.ask(FrontendRequest.SET_DEVICE_STATE_FD, transfer, (70,)) == 0x101
    assert shell.closed == [70]
