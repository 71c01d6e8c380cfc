"""Device status and device reset."""

import pytest

from host.balloon.offered_features import OFFERED
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig, VringState
from protocol.virtio import DeviceStatus
from tests.pair.session import FEATURES, PROTOCOL_FEATURES, REGION, Shell, negotiated, set_up
from tests.protocol.messages import raw

STATUS = 1 << 16
READY = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK


def with_status() -> Shell:
    shell = Shell()
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | STATUS) == 0
    assert shell.memory(REGION) == 0
    shell.take_done()
    return shell


def test_status_reads_back_as_it_was_written() -> None:
    shell = with_status()
    assert shell.ask(FrontendRequest.GET_STATUS) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES) == 0
    for status in (DeviceStatus.ACKNOWLEDGE, READY, READY | DeviceStatus.DRIVER_OK, READY | DeviceStatus.FAILED):
        assert shell.ask(FrontendRequest.SET_STATUS, status) == 0
        assert shell.ask(FrontendRequest.GET_STATUS) == status
    assert shell.take_done()[1:] == ["status 1", "status 11", "status 15", "status 139"]


def test_features_ok_does_not_stay_without_features_that_were_taken() -> None:
    shell = with_status()
    shell.ask(FrontendRequest.SET_STATUS, READY)
    assert shell.ask(FrontendRequest.GET_STATUS) == READY & ~DeviceStatus.FEATURES_OK
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES | 1 << 33) == 1
    shell.ask(FrontendRequest.SET_STATUS, READY)
    assert shell.ask(FrontendRequest.GET_STATUS) == READY & ~DeviceStatus.FEATURES_OK
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES) == 0
    shell.ask(FrontendRequest.SET_STATUS, READY)
    assert shell.ask(FrontendRequest.GET_STATUS) == READY
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES | 1 << 33) == 1  # the old set stays, but was not wanted
    shell.ask(FrontendRequest.SET_STATUS, READY)
    assert shell.ask(FrontendRequest.GET_STATUS) == READY & ~DeviceStatus.FEATURES_OK


def test_rings_run_without_driver_ok() -> None:
    shell = with_status()
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.ask(FrontendRequest.SET_STATUS, READY)
    set_up(shell, 2)


@pytest.mark.parametrize("status", [0x100, 1 << 63])
def test_status_of_more_than_eight_bits_is_refused(status: int) -> None:
    shell = with_status()
    assert shell.ask(FrontendRequest.SET_STATUS, status) == 1
    assert shell.session.status == 0


@pytest.mark.parametrize("request_number", [FrontendRequest.SET_STATUS, FrontendRequest.RESET_DEVICE])
def test_reset_forgets_the_driver_and_keeps_what_the_front_end_said(request_number: FrontendRequest) -> None:
    shell = with_status()
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.ask(FrontendRequest.SET_STATUS, READY)
    shell.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=4, flags=0, data=b"\7\0\0\0"))
    shell.change_config(num_pages=99)
    set_up(shell, 0)
    set_up(shell, 2, base=7)
    payload = 0 if request_number is FrontendRequest.SET_STATUS else None
    assert shell.ask(request_number, payload) == 0
    assert shell.take_done() == ["stop 0", "stop 2", "forget driver", "reset", *(["status 0"] if payload == 0 else [])]
    session = shell.session
    assert (session.features, session.status, session.balloon.features) == (0, 0, 0)
    assert (session.balloon.config.actual, session.balloon.config.num_pages) == (0, 99)
    assert (session.protocol_features, session.has_backend_channel) == (PROTOCOL_FEATURES | STATUS, True)
    assert session.table.regions == (REGION,)
    assert [vring.base for vring in session.vrings] == [0] * 5
    assert shell.ask(FrontendRequest.GET_FEATURES) == OFFERED


@pytest.mark.parametrize("name", ["KICK", "ENABLE"])
def test_ring_needs_all_of_its_configuration_again_after_a_reset(name: str) -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.ask(FrontendRequest.RESET_DEVICE)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.take_done()
    shell.ring(name, 2, 1)
    assert not shell.running


# -- a device that needs a reset --------------------------------------------------------------------------------------

NEEDS_RESET = DeviceStatus.DEVICE_NEEDS_RESET
OK = READY | DeviceStatus.DRIVER_OK
TOLD = f"send {raw(2, flags=0x1).hex()}"


def at_work(*, status: int = OK, channel: bool = True) -> Shell:
    """Return a shell with a driver at work that wrote ``status``, on queues 0 and 2."""
    shell = with_status()
    if channel:
        shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    set_up(shell, 0)
    set_up(shell, 2)
    shell.ask(FrontendRequest.SET_STATUS, status)
    shell.take_done()
    return shell


def break_ring(shell: Shell, index: int) -> list[str]:
    """Have the driver break a ring; return what was done."""
    shell.take_done()
    shell.ring_broke(index)
    return shell.take_done()


def test_ring_that_broke_needs_a_reset_and_the_driver_is_told_once() -> None:
    shell = at_work()
    assert break_ring(shell, 2) == ["stop 2", f"status {OK | NEEDS_RESET}", TOLD]
    assert shell.ask(FrontendRequest.GET_STATUS) == OK | NEEDS_RESET
    assert break_ring(shell, 0) == ["stop 0"]
    assert shell.ask(FrontendRequest.GET_STATUS) == OK | NEEDS_RESET


def test_single_ring_may_be_the_one_that_broke() -> None:
    shell = at_work()
    shell.ring("ENABLE", 0, 0)
    assert break_ring(shell, 2)[-1] == TOLD
    assert not shell.running


def test_ring_found_broken_while_it_is_stopped_needs_a_reset_too() -> None:
    shell = at_work()
    shell.breaking.add(2)
    shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0))
    assert shell.take_done()[:3] == ["stop 2", f"status {OK | NEEDS_RESET}", TOLD]
    assert shell.ask(FrontendRequest.GET_STATUS) == OK | NEEDS_RESET


@pytest.mark.parametrize("name", ["KICK", "BASE", "NUM", "ADDR"])
def test_needs_reset_stays_through_ring_messages_and_other_statuses(name: str) -> None:
    shell = at_work()
    break_ring(shell, 2)
    if name == "BASE":
        shell.ask(FrontendRequest.GET_VRING_BASE, VringState(2, 0))
        set_up(shell, 2, base=5)
    else:
        shell.ring(name, 2, 256)
    shell.ask(FrontendRequest.RESET_OWNER)
    assert shell.ask(FrontendRequest.GET_STATUS) == OK | NEEDS_RESET
    shell.take_done()
    assert shell.ask(FrontendRequest.SET_STATUS, OK) == 0
    assert shell.take_done() == [f"status {OK | NEEDS_RESET}"]
    assert shell.ask(FrontendRequest.GET_STATUS) == OK | NEEDS_RESET


@pytest.mark.parametrize("request_number", [FrontendRequest.SET_STATUS, FrontendRequest.RESET_DEVICE])
def test_reset_takes_the_need_away(request_number: FrontendRequest) -> None:
    shell = at_work()
    break_ring(shell, 2)
    assert shell.ask(request_number, 0 if request_number is FrontendRequest.SET_STATUS else None) == 0
    assert shell.ask(FrontendRequest.GET_STATUS) == 0
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    set_up(shell, 2)
    assert shell.ask(FrontendRequest.SET_STATUS, OK) == 0
    assert shell.take_done() == [f"status {OK}"]
    assert break_ring(shell, 2)[-1] == TOLD


def test_ring_that_breaks_at_the_reset_leaves_no_need_of_another() -> None:
    shell = at_work()
    shell.breaking.add(2)
    shell.ask(FrontendRequest.RESET_DEVICE)
    assert (shell.session.status, shell.session.needs_reset_pending) == (0, False)


def test_driver_that_is_not_ready_yet_is_told_when_it_is() -> None:
    shell = at_work(status=READY)
    assert break_ring(shell, 2) == ["stop 2", f"status {READY | NEEDS_RESET}"]
    shell.change_config(num_pages=3)
    shell.ask(FrontendRequest.SET_STATUS, OK)
    assert shell.take_done() == [f"status {OK | NEEDS_RESET}", TOLD]
    shell.ask(FrontendRequest.SET_STATUS, OK)
    assert TOLD not in shell.take_done()


def test_configuration_change_does_not_tell_the_status_to_a_driver_that_is_not_ready() -> None:
    shell = at_work(status=READY)
    break_ring(shell, 2)
    shell.ring("ENABLE", 0, 0)
    shell.change_config(num_pages=3)
    shell.ring("ENABLE", 0, 1)
    assert shell.take_done()[-1] == TOLD
    shell.ask(FrontendRequest.SET_STATUS, OK)
    assert shell.take_done()[-1] == TOLD


def test_suspended_device_tells_of_its_need_when_it_goes_on() -> None:
    shell = at_work(status=READY)
    break_ring(shell, 2)
    for index in (0, 2):
        shell.ask(FrontendRequest.GET_VRING_BASE, VringState(index, 0))
    shell.ask(FrontendRequest.SET_STATUS, OK)
    assert TOLD not in shell.take_done()
    shell.ring("KICK", 0, 8)
    assert shell.take_done()[-2:] == ["start 0 inflate at 0", TOLD]


def test_channel_that_comes_late_carries_what_there_was_to_tell() -> None:
    shell = at_work(channel=False)
    assert break_ring(shell, 2) == ["stop 2", f"status {OK | NEEDS_RESET}"]
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    assert shell.take_done() == ["channel fd 9", TOLD]


def test_front_end_that_keeps_the_status_itself_is_told_of_the_ring_alone() -> None:
    shell = negotiated()
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    set_up(shell, 2)
    assert break_ring(shell, 2) == ["stop 2"]
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | STATUS) == 0
    assert shell.ask(FrontendRequest.GET_STATUS) == NEEDS_RESET
