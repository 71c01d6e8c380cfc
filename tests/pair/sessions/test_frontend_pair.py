"""The emulated guest's front-end and the back-end through the events of a session: what each makes the other do."""

from dataclasses import replace

import pytest

from guest.vhost_user.frontend import IN_BAND, WANTED_PROTOCOL_FEATURES, Frontend
from host.vhost_user.actions import StopRing
from protocol.errors import VhostUserError
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import ProtocolFeature
from protocol.vhost_user_payloads import InflightDescription, LogDescription
from protocol.virtio import DeviceStatus, feature_mask
from tests.pair.session import BIT_30, FEATURES, MIB, REGION, Shell, queue_setup

REPORTING = 2
STOPS_AT_ONCE = (
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.GET_VRING_BASE_INFLIGHT,
    ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN,
)


def pair(*wanted: ProtocolFeature, in_band: bool = False) -> tuple[Shell, Frontend]:
    """Return both halves of a session that wants these protocol features too, negotiated and with its memory."""
    shell = Shell()
    frontend = Frontend(WANTED_PROTOCOL_FEATURES | feature_mask(*wanted) | (IN_BAND if in_band else 0))
    shell.run(frontend.offer())
    shell.run(frontend.set_backend_channel(9))
    shell.run(frontend.accept(FEATURES & ~BIT_30))
    shell.run(frontend.set_memory((REGION,), (5,)))
    return shell, frontend


def test_queue_stopped_and_started_goes_on_at_its_base() -> None:
    shell, frontend = pair()
    shell.run(frontend.start_queue(REPORTING, queue_setup(REPORTING)))
    shell.base[REPORTING] = 4711
    base = shell.run(frontend.stop_queue(REPORTING))
    shell.take_done()
    shell.run(frontend.start_queue(REPORTING, queue_setup(REPORTING), base))
    assert shell.running[REPORTING].base == 4711
    assert shell.take_done()[-2].startswith("start 2 reporting at 4711")  # and tells that the target may be a new one


def test_queue_stopped_at_once_goes_on_at_its_base() -> None:
    shell, frontend = pair(*STOPS_AT_ONCE)
    shell.run(frontend.start_queue(REPORTING, queue_setup(REPORTING)))
    shell.base[REPORTING] = 4711
    assert shell.run(frontend.stop_queue(REPORTING, drain=False)) == 4711
    assert StopRing(REPORTING, drain=False) in shell.actions


def test_device_status_reaches_the_device_step_by_step() -> None:
    shell, frontend = pair(ProtocolFeature.STATUS)
    shell.run(frontend.driver_ok())
    assert frontend.status == 15
    told = [line for line in shell.take_done() if line.startswith("status")]
    assert told == ["status 1", "status 3", "status 11", "status 15"]


def test_features_that_the_device_does_not_take_end_the_driver() -> None:
    shell = Shell()
    frontend = Frontend(WANTED_PROTOCOL_FEATURES | feature_mask(ProtocolFeature.STATUS))
    shell.run(frontend.offer())
    with pytest.raises(VhostUserError, match="refused SET_FEATURES"):
        shell.run(frontend.accept(1 << 33))
    assert not frontend.status & DeviceStatus.FEATURES_OK


@pytest.mark.parametrize(
    "wanted",
    [
        (ProtocolFeature.RESET_DEVICE,),
        (ProtocolFeature.STATUS,),
        (ProtocolFeature.RESET_DEVICE, ProtocolFeature.STATUS),
    ],
    ids=["message", "status", "both"],
)
def test_device_that_is_reset_runs_nothing_and_is_brought_up_anew(wanted: tuple[ProtocolFeature, ...]) -> None:
    shell, frontend = pair(*wanted)
    for index in range(3):
        shell.run(frontend.start_queue(index, queue_setup(index)))
    shell.base[REPORTING] = 17
    shell.run(frontend.reset(3))
    assert shell.running == {}
    shell.run(frontend.accept(FEATURES & ~BIT_30))
    shell.run(frontend.set_memory((REGION,), (6,)))
    shell.take_done()
    shell.run(frontend.start_queue(REPORTING, queue_setup(REPORTING)))
    assert shell.running[REPORTING].base == 0
    assert list(shell.running) == [REPORTING]


def test_back_end_that_cannot_be_reset_has_its_queues_stopped() -> None:
    shell, frontend = pair()
    for index in range(3):
        shell.run(frontend.start_queue(index, queue_setup(index)))
    shell.run(frontend.reset(3))
    assert shell.running == {}


def test_ring_in_band_starts_when_enabled_and_gets_every_later_kick() -> None:
    shell, frontend = pair(in_band=True)
    shell.take_done()
    setup = replace(queue_setup(REPORTING), kick=None, call=None)
    shell.run(frontend.start_queue(REPORTING, setup))
    started = shell.take_done()
    assert next(line for line in started if line.startswith(("start", "kick"))) == "start 2 reporting at 0"
    assert shell.running[REPORTING].inband
    shell.run(frontend.kick(REPORTING))
    assert shell.take_done() == ["kick ring 2"]


def test_memory_comes_and_goes_region_by_region() -> None:
    shell, frontend = pair(ProtocolFeature.CONFIGURE_MEM_SLOTS)
    shell.take_done()
    assert shell.run(frontend.get_memory_slots()) >= 8
    region = MemoryRegion(
        guest_address=GuestAddress(0x8000_0000), size=MIB, user_address=UserAddress(0x7E00_0000_0000), mmap_offset=0
    )
    shell.run(frontend.add_region(region, 6))
    assert list(shell.session.table.regions) == [REGION, region]
    with pytest.raises(VhostUserError, match="refused ADD_MEM_REG"):
        shell.run(frontend.add_region(region, 7))
    with pytest.raises(VhostUserError, match="refused REM_MEM_REG"):
        shell.run(frontend.remove_region(replace(region, size=2 * MIB)))
    shell.run(frontend.remove_region(region))
    assert list(shell.session.table.regions) == [REGION]
    done = [line for line in shell.take_done() if not line.startswith("message_refused")]
    assert done == ["add region 1 fd 6", "drop region 1"]
    assert shell.closed == [7]


def test_inflight_area_is_made_once_and_handed_back_to_the_next_back_end() -> None:
    shell, frontend = pair(ProtocolFeature.INFLIGHT_SHMFD)
    area = shell.run(frontend.get_inflight(3, 256))
    assert (area.num_queues, area.queue_size, area.mmap_offset) == (3, 256, 0)
    assert area.mmap_size >= 3 * 16 * (256 + 1)
    assert shell.take_done()[-1] == f"make inflight file of {area.mmap_size}"
    successor, again = pair(ProtocolFeature.INFLIGHT_SHMFD)
    successor.take_done()
    successor.run(again.set_inflight(area, 33))
    assert successor.take_done() == ["inflight fd 33"]
    successor.run(again.start_queue(REPORTING, queue_setup(REPORTING), 4))
    assert successor.running[REPORTING].recovers


def test_inflight_area_for_no_queue_is_refused() -> None:
    shell, frontend = pair(ProtocolFeature.INFLIGHT_SHMFD)
    with pytest.raises(VhostUserError, match="refused GET_INFLIGHT_FD"):
        shell.run(frontend.get_inflight(0, 256))
    area = InflightDescription(mmap_size=16, mmap_offset=0, num_queues=3, queue_size=256)
    with pytest.raises(VhostUserError, match="refused SET_INFLIGHT_FD"):
        shell.run(frontend.set_inflight(area, 33))


def test_dirty_log_is_turned_on_for_running_rings_and_off_again() -> None:
    shell, frontend = pair(ProtocolFeature.LOG_SHMFD)
    setup = queue_setup(REPORTING)
    shell.run(frontend.start_queue(REPORTING, setup))
    shell.take_done()
    size = (REGION.guest_address + REGION.size) // 4096 // 8
    shell.run(frontend.start_logging(LogDescription(size, 0), 44))
    used = REGION.guest_address + (setup.used - REGION.user_address)
    shell.run(frontend.place_queue(REPORTING, replace(setup, log=used)))
    done = shell.take_done()
    assert done[0] == f"dirty log fd 44, {size} bytes at 0"
    assert any(hex(used) in line for line in done if line.startswith("log 2"))
    shell.run(frontend.stop_logging())
    shell.run(frontend.place_queue(REPORTING, setup))
    assert "log 2 off" in shell.take_done()
    assert REPORTING in shell.running
