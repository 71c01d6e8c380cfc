"""Parts of huge pages in the balloon: a huge page is discarded when it is whole, and never while a part is in use."""

import struct
import threading

import pytest

from host.balloon.virtio_balloon import Outcome, VirtioBalloon
from host.memory.discard_plan import DeviceMemory
from host.virtqueue.virtqueue import Chain
from protocol.memory import FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.virtio_balloon import BalloonQueue
from tests.harness.processes import DEADLINE

HUGE = 2 << 20
BASE = 0x4000_0000
FIRST = BASE >> 12
MUST_TELL_HOST = 1


def memory(page_size: int = HUGE, protected: tuple[FileRange, ...] = ()) -> DeviceMemory:
    region = MemoryRegion(
        guest_address=GuestAddress(BASE), size=4 * HUGE, user_address=UserAddress(BASE), mmap_offset=HUGE
    )
    return DeviceMemory(RegionTable((region,)), (page_size,), protected)


def serve(balloon: VirtioBalloon, queue: BalloonQueue, pfns: range, device: DeviceMemory | None = None) -> Outcome:
    data = struct.pack(f"<{len(pfns)}I", *pfns)
    chain = Chain(0, [(0, len(data))], [], None)
    return balloon.serve(queue, chain, device or memory(), lambda _address, length: data[:length])


def inflate(balloon: VirtioBalloon, first: int, count: int, device: DeviceMemory | None = None) -> list[FileRange]:
    pfns = range(FIRST + first, FIRST + first + count)
    return serve(balloon, BalloonQueue.INFLATE, pfns, device).plan.discards


def deflate(balloon: VirtioBalloon, first: int, count: int) -> None:
    serve(balloon, BalloonQueue.DEFLATE, range(FIRST + first, FIRST + first + count))


def test_huge_page_is_discarded_with_its_last_part() -> None:
    balloon = VirtioBalloon(features=MUST_TELL_HOST)
    assert inflate(balloon, 512, 256) == []
    assert inflate(balloon, 900, 124) == []
    assert inflate(balloon, 768, 132) == [FileRange(0, 2 * HUGE, HUGE)]
    assert inflate(balloon, 768, 256) == []  # what was given back counts anew


def test_part_that_the_guest_has_taken_back_keeps_its_huge_page() -> None:
    balloon = VirtioBalloon(features=MUST_TELL_HOST)
    inflate(balloon, 0, 256)
    deflate(balloon, 17, 1)
    assert inflate(balloon, 256, 256) == []
    assert inflate(balloon, 17, 1) == [FileRange(0, HUGE, HUGE)]


def test_huge_page_in_one_chain_is_discarded_once() -> None:
    balloon = VirtioBalloon(features=MUST_TELL_HOST)
    assert inflate(balloon, 0, 1024) == [FileRange(0, HUGE, 2 * HUGE)]


def test_part_that_is_taken_back_meanwhile_waits_for_the_end_of_the_discard() -> None:
    balloon = VirtioBalloon(features=MUST_TELL_HOST)
    inflate(balloon, 0, 512)
    deflating = threading.Thread(target=deflate, args=(balloon, 3, 1))
    deflate(balloon, 512, 1)  # another huge page
    deflating.start()
    deflating.join(0.1)
    assert deflating.is_alive()
    balloon.parts.finish()
    deflating.join(DEADLINE)
    assert not deflating.is_alive()


def test_ballooned_pages_are_collected_only_with_must_tell_host() -> None:
    balloon = VirtioBalloon()
    assert inflate(balloon, 0, 256) == []
    assert inflate(balloon, 256, 256) == []


def test_huge_page_that_holds_a_ring_is_kept() -> None:
    balloon = VirtioBalloon(features=MUST_TELL_HOST)
    device = memory(protected=(FileRange(0, HUGE + 8192, 64),))
    assert inflate(balloon, 0, 256, device) == []
    assert inflate(balloon, 256, 256, device) == []


def test_small_pages_are_not_collected() -> None:
    balloon = VirtioBalloon(features=MUST_TELL_HOST)
    assert inflate(balloon, 0, 256, memory(4096)) == [FileRange(0, HUGE, 256 * 4096)]
    assert balloon.parts == VirtioBalloon().parts


@pytest.mark.parametrize("how", ["reset", "forget_driver"])
def test_next_driver_has_an_empty_balloon(how: str) -> None:
    balloon = VirtioBalloon(features=MUST_TELL_HOST)
    inflate(balloon, 0, 256)
    getattr(balloon, how)()
    balloon.features = MUST_TELL_HOST
    assert inflate(balloon, 256, 256) == []
