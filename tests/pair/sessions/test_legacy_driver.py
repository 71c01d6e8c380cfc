"""Drivers of the legacy interface, which accept no VERSION_1, and drivers that cannot be served."""

from dataclasses import replace

import pytest

from host.vhost_user.session import MustClose
from protocol.memory import UserAddress
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringAddress, VringFile
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonQueue
from tests.pair.session import BIT_30, FEATURES, PROTOCOL_FEATURES, REGION, RING_SIZE, Shell

STATUS = 1 << 16
LEGACY = FEATURES & ~feature_mask(FeatureBit.VERSION_1)


def connected(protocol_features: int = PROTOCOL_FEATURES, extra: int = 0) -> Shell:
    shell = Shell()
    shell.session.offered |= extra
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, protocol_features) == 0
    assert shell.memory(REGION) == 0
    return shell


def legacy_ring(index: int, align: int) -> VringAddress:
    """Return where a legacy driver places a ring: in one piece, the used ring at the next multiple of ``align``."""
    descriptor = REGION.user_address + 0x10000 * index
    available = descriptor + 16 * RING_SIZE
    used = -(-(available + 2 * (3 + RING_SIZE)) // align) * align
    return VringAddress(
        index=index,
        flags=0,
        descriptor=UserAddress(descriptor),
        available=UserAddress(available),
        used=UserAddress(used),
    )


@pytest.mark.parametrize("align", [4, 64, 4096])
@pytest.mark.parametrize("features", [LEGACY, LEGACY & ~BIT_30, BIT_30, 0], ids=hex)
def test_rings_of_a_legacy_driver_are_served(features: int, align: int) -> None:
    shell = connected()
    assert shell.ask(FrontendRequest.SET_FEATURES, features) == 0
    queues = {0: BalloonQueue.INFLATE, 1: BalloonQueue.DEFLATE}
    if features & 1 << 5:
        queues[2] = BalloonQueue.REPORTING
    for index in queues:
        address = legacy_ring(index, align)
        assert shell.ring("NUM", index, RING_SIZE) == 0
        assert shell.ask(FrontendRequest.SET_VRING_ADDR, address) == 0
        assert shell.ring("KICK", index, 10 + index) == 0
        assert shell.ring("ENABLE", index, 1) == 0
        assert shell.running[index].place.used.offset == address.used - REGION.user_address
    assert {index: start.queue for index, start in shell.running.items()} == queues
    assert shell.session.ring_format == "split"


@pytest.mark.parametrize("bit", [FeatureBit.RING_PACKED, FeatureBit.IN_ORDER])
def test_legacy_driver_has_no_feature_beyond_32_bits(bit: FeatureBit) -> None:
    shell = connected(extra=1 << bit)
    assert shell.ask(FrontendRequest.SET_FEATURES, LEGACY | 1 << bit) == 1
    assert shell.session.features == 0


UNKNOWN = FEATURES | 1 << 40


@pytest.mark.parametrize("features", [UNKNOWN, UNKNOWN & ~BIT_30])
def test_refused_features_end_the_session_where_no_reply_tells_of_them(features: int) -> None:
    shell = connected()
    with pytest.raises(MustClose, match="feature bits 0x10000000000 were not offered, and SET_FEATURES wanted no"):
        shell.ask(FrontendRequest.SET_FEATURES, features, need_reply=False)


def test_refused_features_are_told_by_the_device_status() -> None:
    shell = connected(PROTOCOL_FEATURES | STATUS)
    assert shell.ask(FrontendRequest.SET_FEATURES, UNKNOWN, need_reply=False) is None
    shell.ask(FrontendRequest.SET_STATUS, 1 | 2 | 8)
    assert shell.ask(FrontendRequest.GET_STATUS) == 1 | 2


def test_driver_that_accepts_no_feature_gets_features_ok() -> None:
    shell = connected(PROTOCOL_FEATURES | STATUS)
    assert shell.ask(FrontendRequest.SET_FEATURES, 0, need_reply=False) is None
    shell.ask(FrontendRequest.SET_STATUS, 1 | 2 | 8)
    assert shell.ask(FrontendRequest.GET_STATUS) == 1 | 2 | 8


def kick_outside_the_memory(shell: Shell, *, need_reply: bool) -> object:
    """Start queue 2 with a used ring that lies outside the memory for the most part; return the answer to the kick."""
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES & ~BIT_30)
    end = REGION.user_address + REGION.size
    address = replace(legacy_ring(2, 4), used=UserAddress(end - 64))
    shell.ring("NUM", 2, RING_SIZE)
    shell.session.vrings[2].set_address(address, shell.session.table)
    return shell.ask(FrontendRequest.SET_VRING_KICK, VringFile(2, True), (12,), need_reply=need_reply)


def test_ring_that_can_never_run_is_refused_or_ends_the_session() -> None:
    assert kick_outside_the_memory(connected(), need_reply=True) == 1
    with pytest.raises(MustClose, match=r"used ring of queue 2, .* is not in one memory region, and SET_VRING_KICK"):
        kick_outside_the_memory(connected(), need_reply=False)


def test_ring_whose_memory_may_still_come_waits_for_it() -> None:
    shell = Shell()
    for name, value in (("NUM", 256), ("ADDR", None), ("KICK", 12), ("ENABLE", 1)):
        shell.ring(name, 2, value)
    shell.ask(FrontendRequest.SET_FEATURES, FEATURES, need_reply=False)
    assert not shell.running
    shell.memory(REGION)
    assert list(shell.running) == [2]
