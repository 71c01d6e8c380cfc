"""What a front-end changes under running rings: memory, configuration, everything; and what a refusal leaves alone."""

from copy import deepcopy

import pytest

from host.vhost_user.actions import ReplaceMemory, SetVringFile
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringState
from tests.pair.session import FEATURES, MIB, PROTOCOL_FEATURES, REGION, Shell, negotiated, ring_address, set_up

ABOVE = MemoryRegion(
    guest_address=GuestAddress(0x1_0000_0000),
    size=16 * MIB,
    user_address=UserAddress(0x7E00_0000_0000),
    mmap_offset=64 * MIB,
)


def test_new_table_under_running_rings_stops_them_swaps_and_goes_on_where_they_were() -> None:
    shell = negotiated()
    set_up(shell, 0)
    set_up(shell, 2)
    shell.base = {0: 3, 2: 9}
    assert shell.memory(ABOVE, REGION, first_fd=30) == 0
    assert shell.take_done() == [
        "stop 0",
        "stop 2",
        "memory ['0x100000000', '0x40000000'] fds [30, 31]",
        "start 0 inflate at 3",
        "start 2 reporting at 9",
    ]
    assert [part.region for part in shell.running[2].place.parts] == [1, 1, 1]


def test_ring_whose_memory_is_gone_is_parked_and_resumes_when_it_is_back() -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.base[2] = 9
    assert shell.memory(ABOVE) == 0
    assert shell.take_done() == ["stop 2", "memory ['0x100000000'] fds [5]", "queue_stopped 2"]
    assert shell.memory() == 0
    assert shell.take_done() == ["memory [] fds []"]
    assert shell.memory(REGION) == 0
    assert shell.take_done() == ["memory ['0x40000000'] fds [5]", "start 2 reporting at 9"]


def test_table_that_the_operating_system_refuses_leaves_the_rings_on_the_old_one() -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.base[2] = 4
    shell.failing = {ReplaceMemory}
    assert shell.memory(ABOVE, first_fd=30) == 1
    assert shell.take_done() == ["stop 2", "start 2 reporting at 4", "message_refused SET_MEM_TABLE"]
    assert shell.closed == [30]
    assert shell.session.table.regions == (REGION,)


def test_regions_come_and_go_one_by_one() -> None:
    shell = negotiated()
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.ADD_MEM_REG, ABOVE, (7,)) == 0
    assert shell.take_done() == ["add region 1 fd 7"]
    assert shell.ask(FrontendRequest.REM_MEM_REG, REGION, (8,)) == 0
    assert shell.take_done() == ["stop 2", "drop region 0", "queue_stopped 2"]
    assert shell.closed == [8]
    assert shell.ask(FrontendRequest.REM_MEM_REG, REGION) == 1
    assert shell.take_done() == ["message_refused REM_MEM_REG"]
    assert shell.ask(FrontendRequest.ADD_MEM_REG, REGION, (9,)) == 0
    assert shell.take_done() == ["add region 1 fd 9", "start 2 reporting at 0"]


# -- stopping and starting ------------------------------------------------------------------------------------------


def test_get_vring_base_and_a_restart_with_it_lose_nothing_and_repeat_nothing() -> None:
    shell = negotiated()
    set_up(shell, 2, base=65535)
    shell.base[2] = 3
    assert shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0), need_reply=False) == VringState(2, 3)
    assert shell.take_done() == ["stop 2", "kick 2 fd None", "call 2 fd None"]
    assert shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0)) == VringState(2, 3)
    shell.take_done()
    shell.ring("BASE", 2, 3)
    shell.ring("KICK", 2, 14)
    assert shell.take_done() == ["kick 2 fd 14", "start 2 reporting at 3"]


def test_ring_configured_anew_without_get_vring_base_stops_and_waits_for_its_kick() -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.base[2] = 9
    shell.ring("NUM", 2, 128)
    assert shell.take_done() == ["stop 2"]
    shell.ring("BASE", 2, 0)
    shell.ring("ADDR", 2, REGION.user_address + MIB)
    assert shell.take_done() == []
    shell.ring("KICK", 2, 14)
    assert shell.take_done() == ["kick 2 fd 14", "forget driver", "start 2 reporting at 0"]
    assert shell.running[2].place.size == 128
    assert shell.running[2].place.descriptor.offset == MIB + 0x20000


def test_reset_device_stops_all_rings_and_forgets_the_driver_but_not_the_connection() -> None:
    shell = negotiated()
    set_up(shell, 0)
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.RESET_DEVICE) == 0
    assert shell.take_done() == ["stop 0", "stop 2", "forget driver", "reset"]
    assert shell.session.features == 0
    assert shell.session.protocol_features == PROTOCOL_FEATURES
    assert shell.session.table.regions == (REGION,)
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES) == 0
    assert shell.ring("ENABLE", 2, 1) == 0
    shell.take_done()
    set_up(shell, 2)


def test_disabling_pauses_a_ring_and_enabling_goes_on() -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.base[2] = 6
    assert shell.ring("ENABLE", 2, 0) == 0
    assert shell.take_done() == ["stop 2"]
    assert shell.ring("ENABLE", 2, 0) == 0
    assert shell.ring("ENABLE", 2, 1) == 0
    assert shell.take_done() == ["start 2 reporting at 6"]


def test_enabling_a_queue_that_was_never_configured_is_acknowledged_and_touches_nothing() -> None:
    shell = negotiated()
    for index in range(5):
        assert shell.ring("ENABLE", index, 1) == 0
    assert shell.take_done() == []


def test_addresses_set_again_on_a_running_ring_switch_only_logging() -> None:
    shell = negotiated()
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.SET_VRING_ADDR, ring_address(2, flags=1)) == 0
    assert shell.take_done() == []
    assert 2 in shell.running


@pytest.mark.parametrize("name", ["KICK", "CALL", "ERR"])
def test_descriptor_is_replaced_while_the_ring_is_stopped_for_it(name: str) -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.base[2] = 6
    assert shell.ring(name, 2, 33) == 0
    told = ", tell the driver" if name == "CALL" else ""
    assert shell.take_done() == ["stop 2", f"{name.lower()} 2 fd 33", f"start 2 reporting at 6{told}"]


def test_paused_ring_signals_its_new_call_descriptor_for_the_old_one() -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.ring("ENABLE", 2, 0)
    shell.ring("CALL", 2, 33)
    shell.take_done()
    shell.ring("ENABLE", 2, 1)
    assert shell.take_done() == ["start 2 reporting at 0, tell the driver"]


@pytest.mark.parametrize("stopped", [True, False])
def test_ring_that_is_set_up_anew_sends_no_interrupt_first(stopped: bool) -> None:
    """User Mode Linux only disables the rings of a driver that goes, and describes the next one's call first."""
    shell = negotiated()
    set_up(shell, 2)
    shell.ring("ENABLE", 2, 0)
    if stopped:
        shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0))
    shell.ring("CALL", 2, 33)
    shell.ring("NUM", 2, 128)
    shell.ring("KICK", 2, 12)
    shell.take_done()
    shell.ring("ENABLE", 2, 1)
    assert shell.take_done() == ["start 2 reporting at 0"]


@pytest.mark.parametrize("name", ["KICK", "CALL", "ERR"])
def test_ring_without_one_of_its_descriptors_runs_all_the_same(name: str) -> None:
    shell = negotiated()
    set_up(shell, 2)
    assert shell.ring(name, 2) == 0
    assert f"{name.lower()} 2 fd None" in shell.take_done()
    assert 2 in shell.running


# -- a refused message changes nothing ------------------------------------------------------------------------------


def bad(shell: Shell, name: str) -> object:
    """Send one message about queue 2 that has to be refused; return the answer."""
    match name:
        case "NUM 0" | "NUM 3" | "NUM 65536":
            return shell.ring("NUM", 2, int(name.split()[1]))
        case "ADDR misaligned":
            return shell.ring("ADDR", 2, REGION.user_address + 1)
        case "ADDR outside":
            return shell.ring("ADDR", 2, 0x1000)
        case "ENABLE 2":
            return shell.ring("ENABLE", 2, 2)
        case "queue 5" | "queue 65538" | "queue 4294967295":
            return shell.ring("NUM", int(name.split()[1]), 256)
        case "table of nine":
            return shell.memory(*[region_number(number) for number in range(9)])
        case "table that overlaps":
            return shell.memory(REGION, REGION)
        case "empty region":
            return shell.memory(
                MemoryRegion(guest_address=GuestAddress(0), size=0, user_address=UserAddress(0), mmap_offset=0)
            )
        case "region again":
            return shell.ask(FrontendRequest.ADD_MEM_REG, REGION, (8,))
        case "unknown region":
            return shell.ask(FrontendRequest.REM_MEM_REG, region_number(3))
        case "feature not offered":
            return shell.ask(FrontendRequest.SET_FEATURES, FEATURES | 1 << 33)
        case "IN_ORDER without VERSION_1":
            shell.session.offered |= 1 << 35
            return shell.ask(FrontendRequest.SET_FEATURES, (FEATURES | 1 << 35) & ~(1 << 32))
        case "protocol feature not offered":
            return shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | 1 << 21)
        case _:
            return shell.ask(FrontendRequest[name], 0 if name == "SET_STATUS" else VringState(0, 0))


def snapshot(shell: Shell) -> tuple[object, ...]:
    """Return all that a message could have changed."""
    session = shell.session
    return (
        session.features,
        session.protocol_features,
        session.table.regions,
        session.balloon.features,
        session.balloon.config,
        deepcopy(session.vrings),
        dict(shell.running),
    )


def region_number(number: int) -> MemoryRegion:
    """Return one of many regions that do not overlap."""
    start = 0x10_0000_0000 * (number + 1)
    return MemoryRegion(
        guest_address=GuestAddress(start), size=MIB, user_address=UserAddress(start), mmap_offset=number * MIB
    )


@pytest.mark.parametrize(
    "name",
    [
        "NUM 0",
        "NUM 3",
        "NUM 65536",
        "ADDR misaligned",
        "ADDR outside",
        "ENABLE 2",
        "queue 5",
        "queue 65538",
        "queue 4294967295",
        "table of nine",
        "table that overlaps",
        "empty region",
        "region again",
        "unknown region",
        "feature not offered",
        "IN_ORDER without VERSION_1",
        "protocol feature not offered",
        "SET_STATUS",
        "VRING_KICK",
    ],
)
def test_refused_message_changes_nothing(name: str) -> None:
    shell = negotiated()
    set_up(shell, 2)
    before = snapshot(shell)
    assert bad(shell, name) == 1
    (refusal,) = shell.take_done()
    assert refusal.startswith("message_refused")
    assert snapshot(shell) == before


@pytest.mark.parametrize("name", ["KICK", "CALL", "ERR"])
def test_descriptor_that_the_operating_system_refuses_leaves_the_ring_running_with_the_old_one(name: str) -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.base[2] = 8
    shell.failing = {SetVringFile}
    assert shell.ring(name, 2, 33) == 1
    shell.failing = set()
    done = shell.take_done()
    assert done[0] == "stop 2"
    assert done[1].startswith("start 2 reporting at 8")
    assert shell.closed == [33]


def test_addresses_again_of_a_ring_that_waits_to_be_enabled_do_not_stop_it_from_starting() -> None:
    shell = negotiated()
    for name, value in (("NUM", 256), ("ADDR", None), ("KICK", 12)):
        shell.ring(name, 2, value)
    assert shell.ask(FrontendRequest.SET_VRING_ADDR, ring_address(2, flags=1)) == 0
    shell.take_done()
    assert shell.ring("ENABLE", 2, 1) == 0
    assert shell.take_done() == ["start 2 reporting at 0"]
