"""Device status and device reset."""

import pytest

from host.virtio_balloon import OFFERED
from protocol.vhost_user import DeviceConfig, FrontendRequest
from protocol.virtio import DeviceStatus
from tests.pair.session import FEATURES, PROTOCOL_FEATURES, REGION, Shell, negotiated, set_up

STATUS = 1 << 16
READY = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK


def with_status() -> Shell:
    shell = Shell()
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES | STATUS) == 0
    assert shell.memory(REGION) == 0
    shell.take_done()
    return shell


def test_a_status_reads_back_as_it_was_written() -> None:
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
def test_a_status_of_more_than_eight_bits_is_refused(status: int) -> None:
    shell = with_status()
    assert shell.ask(FrontendRequest.SET_STATUS, status) == 1
    assert shell.session.status == 0


@pytest.mark.parametrize("request_number", [FrontendRequest.SET_STATUS, FrontendRequest.RESET_DEVICE])
def test_a_reset_forgets_the_driver_and_keeps_what_the_front_end_said(request_number: FrontendRequest) -> None:
    shell = with_status()
    shell.ask(FrontendRequest.SET_BACKEND_REQ_FD, fds=(9,))
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.ask(FrontendRequest.SET_STATUS, READY)
    shell.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=4, flags=0, data=b"\7\0\0\0"))
    shell.backend.change_config(num_pages=99)
    set_up(shell, 0)
    set_up(shell, 2, base=7)
    payload = 0 if request_number is FrontendRequest.SET_STATUS else None
    assert shell.ask(request_number, payload) == 0
    assert shell.take_done() == ["stop 0", "stop 2", "reset", *(["status 0"] if payload == 0 else [])]
    session = shell.session
    assert (session.features, session.status, session.balloon.features) == (0, 0, 0)
    assert (session.balloon.config.actual, session.balloon.config.num_pages) == (0, 99)
    assert (session.protocol_features, session.has_backend_channel) == (PROTOCOL_FEATURES | STATUS, True)
    assert session.table.regions == (REGION,)
    assert [vring.base for vring in session.vrings] == [0] * 5
    assert shell.ask(FrontendRequest.GET_FEATURES) == OFFERED


@pytest.mark.parametrize("name", ["KICK", "ENABLE"])
def test_after_a_reset_a_ring_needs_all_of_its_configuration_again(name: str) -> None:
    shell = negotiated()
    set_up(shell, 2)
    shell.ask(FrontendRequest.RESET_DEVICE)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES)
    shell.take_done()
    shell.ring(name, 2, 1)
    assert not shell.running
