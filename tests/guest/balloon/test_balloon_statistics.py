"""guest/balloon/balloon_statistics.py: numbers that follow from known operations."""

from collections.abc import Callable

import pytest

from guest.balloon.balloon import Balloon
from guest.balloon.balloon_statistics import balloon_statistics, mem_available
from guest.linux_profile import LINUX_7_2, PROFILES, Profile
from guest.machine import Block, Machine
from guest.mm.page_alloc import PageAllocator
from protocol.balloon_statistics import StatisticTag
from protocol.memory import PAGE_SIZE
from tests.guest.test_machine import Contents

PAGES = 4096
DEFLATE_ON_OOM = 1 << 2


class Scene:
    """A machine of 16 MiB with a balloon."""

    def __init__(self, features: int = 0) -> None:
        self.machine = Machine(PageAllocator(PAGES), Contents(), lambda _: None, lambda *_: None)
        self.balloon = Balloon(self.machine.allocator, lambda: None)
        self.balloon.attach(features, 0, 0)

    def inflate(self, pages: int) -> None:
        self.balloon.set_target(pages)
        while (step := self.balloon.next_step()) is not None:
            self.balloon.done(step)

    def pages(self, tag: StatisticTag) -> int:
        """Return one amount of memory in pages."""
        return balloon_statistics(self.machine, self.balloon, 0, [tag])[tag] // PAGE_SIZE


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_tags_are_those_of_the_profile_in_its_order(profile: Profile) -> None:
    scene = Scene()
    scene.inflate(256)
    assert tuple(balloon_statistics(scene.machine, scene.balloon, 3, profile.statistics)) == profile.statistics


def test_tags_of_linux_7_2_are_all_that_the_machine_can_count() -> None:
    untold = {StatisticTag.MAJFLT, StatisticTag.MINFLT, StatisticTag.ASYNC_SCAN, StatisticTag.DIRECT_SCAN}
    assert set(StatisticTag) - set(LINUX_7_2.statistics) == untold
    scene = Scene()
    assert balloon_statistics(scene.machine, scene.balloon, 3, LINUX_7_2.statistics)[StatisticTag.OOM_KILL] == 3


def test_empty_machine_is_free_but_not_all_of_it_is_available() -> None:
    scene = Scene()
    assert scene.pages(StatisticTag.MEMFREE) == scene.pages(StatisticTag.MEMTOT) == PAGES
    zone = scene.machine.allocator.zones[0]
    assert scene.pages(StatisticTag.AVAIL) == PAGES - zone.watermarks.high


def test_pages_in_the_balloon_are_memory_only_of_a_guest_that_may_have_them_back() -> None:
    for features, total in ((0, PAGES - 256), (DEFLATE_ON_OOM, PAGES)):
        scene = Scene(features)
        scene.inflate(256)
        assert scene.pages(StatisticTag.MEMFREE) == PAGES - 256
        assert scene.pages(StatisticTag.MEMTOT) == total


def test_cache_is_available_but_for_what_it_should_keep() -> None:
    scene = Scene()
    zone = scene.machine.allocator.zones[0]
    with scene.machine.page_cache() as cache:
        for _ in range(1000):
            _touch(scene.machine, cache.touch)
        assert scene.pages(StatisticTag.CACHES) == 1000
        assert scene.pages(StatisticTag.MEMFREE) == PAGES - 1000
        assert scene.pages(StatisticTag.AVAIL) == PAGES - zone.watermarks.high - zone.watermarks.low
        cache.drop()
        assert scene.pages(StatisticTag.CACHES) == 0
    assert scene.machine.cached_pages == 0


def test_available_memory_is_not_negative() -> None:
    scene = Scene()
    while scene.machine.allocate(0) is not None:
        pass
    assert mem_available(scene.machine.allocator, 0) == 0


def test_reclaimed_pages_are_counted_by_reclaimer() -> None:
    scene = Scene()
    with scene.machine.page_cache() as cache:
        for _ in range(3 * PAGES):
            _touch(scene.machine, cache.touch)
        vmscan = scene.machine.allocator.vmscan
        assert scene.pages(StatisticTag.ASYNC_RECLAIM) == vmscan.reclaimed_pages > 0
        assert scene.pages(StatisticTag.DIRECT_RECLAIM) == 0
        freed = vmscan.direct_reclaim(0)
        assert scene.pages(StatisticTag.DIRECT_RECLAIM) == freed > 0
        tag = StatisticTag.ALLOC_STALL
        stalls = balloon_statistics(scene.machine, scene.balloon, 0, [tag])[tag]
        assert stalls == vmscan.direct_reclaims
        cache.drop()


def _touch(machine: Machine, touch: Callable[[Block], None]) -> None:
    block = machine.allocate(0)
    assert block is not None
    touch(block)
