"""A report's whole way: the driver's blocks, the ring, the device's plan: which bytes of which file are discarded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.balloon.virtio_balloon import report_buffers
from host.balloon.virtio_balloon import VirtioBalloon
from host.memory.discard_plan import DeviceMemory, DiscardPlan
from host.virtqueue.virtqueue import Buffer
from protocol.memory import FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.virtio_balloon import BalloonQueue
from scripts.check.model.ring_memory import BASE, RingMemory

MIB = 1 << 20
REPORTING, POISON = 1 << 5, 1 << 4

FILE_OFFSET = 8 * MIB
"""Where the first region begins in its file."""

LOW = MemoryRegion(
    guest_address=GuestAddress(BASE), size=64 * MIB, user_address=UserAddress(0), mmap_offset=FILE_OFFSET
)
NEXT = MemoryRegion(
    guest_address=GuestAddress(BASE + 64 * MIB), size=16 * MIB, user_address=UserAddress(1 << 40), mmap_offset=0
)
"""Begins where the first one ends, but is another file."""

END = BASE + 80 * MIB


class World:
    """A guest with two regions of memory, its reporting ring at their beginning, and the device at the other end."""

    def __init__(self, *, indirect: bool = True, size: int = 256, features: int = REPORTING) -> None:
        self.ring = RingMemory(size, tables=int(indirect), capacity=256)
        self.virtqueue = self.ring.driver(event_idx=True)
        self.queue = self.ring.device(event_idx=True)
        parts = list(zip(self.ring.layout.offsets, (16 * size, 6 + 2 * size, 6 + 8 * size), strict=True))
        protected = [FileRange(0, FILE_OFFSET + offset, length) for offset, length in parts]
        self.memory = DeviceMemory(RegionTable([LOW, NEXT]), protected=protected)
        self.balloon = VirtioBalloon(features=features)

    def serve(self) -> DiscardPlan:
        """Serve one chain on the device's side: plan, and give it back."""
        chain = self.queue.pop()
        assert chain is not None
        plan = self.balloon.serve(BalloonQueue.REPORTING, chain, self.memory, self.ring.read_guest).plan
        self.queue.add_used(chain.head, 0)
        return plan

    def acknowledged(self) -> bool:
        """Return whether the driver gets a report back."""
        return self.virtqueue.get_used() is not None

    def report(self, *buffers: Buffer) -> DiscardPlan:
        """Send raw buffers, good or bad, as one report; check that it is acknowledged, and return the plan."""
        self.virtqueue.add((), buffers)
        plan = self.serve()
        assert self.acknowledged()
        assert (plan.ranges, plan.bytes) == (len(buffers), sum(length for _, length in buffers))
        return plan


def reasons(plan: DiscardPlan) -> list[str]:
    """Return why ranges were refused, in order."""
    return [refused.reason.value for refused in plan.refused]


@pytest.mark.parametrize("indirect", [False, True])
def test_reported_blocks_become_ranges_of_the_file_in_their_order(indirect: bool) -> None:
    world = World(indirect=indirect)
    first = (BASE + 32 * MIB) >> 12
    second = (BASE + 64 * MIB) >> 12
    world.virtqueue.add((), report_buffers([(second, 10), (first, 9), (first + 512, 0)]))
    plan = world.serve()
    assert plan.discards == [
        FileRange(1, 0, 4 * MIB),
        FileRange(0, FILE_OFFSET + 32 * MIB, 2 * MIB),
        FileRange(0, FILE_OFFSET + 34 * MIB, 4096),
    ]
    assert plan.refused == []
    assert world.acknowledged()


def test_whole_report_of_32_blocks_is_one_chain_and_one_acknowledgement() -> None:
    world = World()
    blocks = [(((BASE + 16 * MIB) >> 12) + 256 * number, 8) for number in range(32)]
    world.virtqueue.add((), report_buffers(blocks))
    assert len(world.serve().discards) == 32
    assert world.acknowledged()
    assert not world.acknowledged()
    assert world.queue.pop() is None


GOOD = (BASE + 48 * MIB, 2 * MIB)
GOOD_PLACE = FileRange(0, FILE_OFFSET + 48 * MIB, 2 * MIB)

BAD: list[tuple[str, Buffer]] = [
    ("empty", (BASE + 8 * MIB, 0)),
    ("empty", (0, 0)),
    ("unaligned", (BASE + 8 * MIB + 512, 4096)),
    ("unaligned", (BASE + 8 * MIB, 4095)),
    ("unaligned", (BASE + 8 * MIB, 4097)),
    ("unaligned", (BASE + 8 * MIB + 1, 1)),
    ("out_of_range", (0, 4096)),
    ("out_of_range", (BASE - 4096, 4096)),
    ("out_of_range", (END, 4096)),
    ("out_of_range", (2**64 - 4096, 4096)),
    ("out_of_range", (2**64 - 4096, 8192)),  # would wrap to address 0
    ("out_of_range", (BASE - 4096, 8192)),  # ends inside
    ("crosses_regions", (BASE + 64 * MIB - 4096, 8192)),
    ("crosses_regions", (END - 4096, 8192)),
    ("crosses_regions", (BASE + 32 * MIB, 0xFFFF_F000)),
    ("ring_memory", (BASE, 4096)),
    ("ring_memory", (BASE, 4 * MIB)),
    ("ring_memory", (BASE + 4096, 4096)),
]


@pytest.mark.parametrize(("reason", "buffer"), BAD)
def test_bad_range_is_refused_and_the_good_ones_beside_it_are_served(reason: str, buffer: Buffer) -> None:
    plan = World().report(GOOD, buffer, (BASE + 64 * MIB, 4096))
    assert plan.discards == [GOOD_PLACE, FileRange(1, 0, 4096)]
    assert [(refused.reason.value, refused.address, refused.length) for refused in plan.refused] == [(reason, *buffer)]


@pytest.mark.parametrize(("reason", "buffer"), BAD)
def test_report_of_nothing_but_a_bad_range_is_acknowledged(reason: str, buffer: Buffer) -> None:
    plan = World().report(buffer)
    assert (plan.discards, reasons(plan)) == ([], [reason])


def test_page_past_the_ring_is_served_and_the_rings_last_page_is_not() -> None:
    world = World()
    last_page = (world.ring.ring_end - 1) // 4096 * 4096
    assert reasons(world.report((BASE + last_page, 4096))) == ["ring_memory"]
    assert world.report((BASE + last_page + 4096, 4096)).refused == []


def test_chains_own_indirect_table_is_spared() -> None:
    world = World(size=256)
    assert world.ring.tables is not None
    table = world.ring.tables.addresses[0]
    page = table // 4096 * 4096 + 4096  # holds no part of the ring, but of a table of 200 entries
    assert page < table + 16 * 200
    plan = world.report((page, 4096), *[GOOD] * 199)
    assert (reasons(plan), plan.discards) == (["ring_memory"], [GOOD_PLACE] * 199)
    assert world.report((page, 4096), GOOD).refused == []  # a short table ends before, so now it is plain memory


def test_range_that_is_reported_twice_is_discarded_twice() -> None:
    assert World().report(GOOD, GOOD).discards == [GOOD_PLACE, GOOD_PLACE]


def test_readable_buffers_are_acknowledged_and_kept() -> None:
    world = World()
    world.virtqueue.add([GOOD], [(BASE + 64 * MIB, 4096)])
    plan = world.serve()
    assert plan.discards == [FileRange(1, 0, 4096)]
    assert reasons(plan) == ["readable"]
    assert (plan.ranges, plan.bytes) == (2, 2 * MIB + 4096)
    assert world.acknowledged()


@pytest.mark.parametrize(("poison", "discarded"), [(0, True), (0xAAAA_AAAA, False), (1, False)])
def test_guest_that_relies_on_a_pattern_keeps_its_pages(poison: int, discarded: bool) -> None:
    world = World(features=REPORTING | POISON)
    world.balloon.write_config(12, poison.to_bytes(4, "little"), poison_offered=True)
    plan = world.report(GOOD, (0, 0))
    assert bool(plan.discards) is discarded
    assert reasons(plan) == (["empty"] if discarded else ["poison", "poison"])


def test_operator_who_forbids_discards_gets_acknowledged_reports() -> None:
    world = World()
    world.balloon.discard = False
    assert reasons(world.report(GOOD)) == ["discard_off"]


ADDRESSES = st.one_of(
    st.integers(-4, 90 * 256).map(lambda page: BASE + page * 4096),
    st.integers(0, 40).map(lambda page: BASE + page * 4096),
    st.integers(BASE - 8192, END + 8192),
    st.integers(0, 2**64 - 1),
)
LENGTHS = st.one_of(
    st.integers(0, 1024).map(lambda pages: pages * 4096), st.integers(0, 10000), st.integers(0, 2**32 - 1)
)


@pytest.mark.long
@given(reports=st.lists(st.lists(st.tuples(ADDRESSES, LENGTHS), min_size=1, max_size=12), min_size=1, max_size=4))
@settings(max_examples=200)
def test_discarded_ranges_are_whole_pages_of_one_region_and_never_a_ring(reports: list[list[Buffer]]) -> None:
    world = World()
    assert world.ring.tables is not None
    table = world.ring.tables.addresses[0] - BASE + FILE_OFFSET
    regions = (LOW, NEXT)
    for buffers in reports:
        plan = world.report(*buffers)
        assert len(plan.discards) + len(plan.refused) == len(buffers)
        for region, offset, length in plan.discards:
            assert length > 0
            assert offset % 4096 == length % 4096 == 0
            assert regions[region].mmap_offset <= offset
            assert offset + length <= regions[region].mmap_offset + regions[region].size
            address = offset - regions[region].mmap_offset + regions[region].guest_address
            assert (address, length) in buffers
            if region == 0:
                assert offset >= FILE_OFFSET + world.ring.ring_end
                assert len(buffers) == 1 or offset >= table + 16 * len(buffers) or offset + length <= table
