"""The files of a guest's memory: their checks, their owner at each step, the mappings of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.memory.guest_memory import GuestMemory, MappedRing, RegionFile, open_region
from host.virtqueue.ring_place import RingPlace
from protocol.errors import VhostUserError, VirtqueueError
from protocol.memory import PAGE_SIZE, FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.packed_ring import PackedRing
from protocol.split_ring import SplitRing
from protocol.virtio_ring import avail_ring_bytes, descriptor_table_bytes, used_ring_bytes
from tests.harness.virtual_machine import Ram

SIZE = 64 * PAGE_SIZE
QUEUE = 128
HUGE_PAGE = 2 << 20


def region(guest: int = 0x10000, size: int = SIZE, offset: int = 0) -> MemoryRegion:
    return MemoryRegion(
        guest_address=GuestAddress(guest), size=size, user_address=UserAddress(guest), mmap_offset=offset
    )


def place(descriptor: int, available: int, used: int, *, number: int = 0) -> RingPlace:
    return RingPlace(
        size=QUEUE,
        descriptor=FileRange(number, descriptor, descriptor_table_bytes(QUEUE)),
        available=FileRange(number, available, avail_ring_bytes(QUEUE)),
        used=FileRange(number, used, used_ring_bytes(QUEUE)),
    )


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def mappings() -> int:
    """Return how many mappings of a test's memory this process has."""
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("test-ram")


@pytest.fixture
def ram() -> Iterator[Ram]:
    ram = Ram(SIZE)
    yield ram
    ram.close()


@pytest.fixture
def memory(ram: Ram) -> Iterator[GuestMemory]:
    """A guest's memory of one region, over a descriptor of its own."""
    memory = GuestMemory()
    memory.replace(RegionTable([region()]), [os.dup(ram.fd)])
    yield memory
    memory.close()


@pytest.mark.parametrize("sealed", [True, False])
def test_file_says_whether_it_is_sealed(sealed: bool) -> None:
    ram = Ram(SIZE, sealed=sealed)
    file = open_region(region(), ram.fd)
    assert (file.sealed, file.page_size) == (sealed, PAGE_SIZE)
    ram.close()


def test_unsealed_file_makes_the_memory_unsealed(memory: GuestMemory) -> None:
    other = Ram(SIZE, sealed=False)
    answers = [memory.sealed]
    memory.add(memory.table.with_region(region(guest=0x900000)), os.dup(other.fd))
    answers.append(memory.sealed)
    memory.drop(memory.table.without(1), 1)
    answers.append(memory.sealed)
    assert answers == [True, False, True]
    other.close()


def test_region_may_end_exactly_where_its_file_ends(ram: Ram) -> None:
    open_region(region(size=SIZE - PAGE_SIZE, offset=PAGE_SIZE), ram.fd)
    with pytest.raises(VhostUserError, match="exceeds its file"):
        open_region(region(size=SIZE - PAGE_SIZE, offset=PAGE_SIZE + 1), ram.fd)


def test_refused_table_owns_nothing(memory: GuestMemory, ram: Ram) -> None:
    good, bad = os.dup(ram.fd), os.eventfd(0)
    mine = memory.files[0].fd
    with pytest.raises(VhostUserError, match="not a regular file"):
        memory.replace(RegionTable([region(), region(guest=0x900000)]), [good, bad])
    assert [is_open(fd) for fd in (good, bad, mine)] == [True, True, True]
    assert memory.files[0].fd == mine
    os.close(good)
    os.close(bad)


def test_replaced_dropped_or_closed_file_is_closed(memory: GuestMemory, ram: Ram) -> None:
    first = memory.files[0].fd
    second, third = os.dup(ram.fd), os.dup(ram.fd)
    memory.replace(RegionTable([region()]), [second])
    assert (is_open(first), is_open(second)) == (False, True)
    memory.add(memory.table.with_region(region(guest=0x900000)), third)
    memory.drop(memory.table.without(0), 0)
    assert (is_open(second), is_open(third)) == (False, True)
    memory.close()
    memory.close()
    assert not is_open(third)


def test_read_needs_the_whole_range_in_one_region(memory: GuestMemory, ram: Ram) -> None:
    ram.map[PAGE_SIZE : PAGE_SIZE + 5] = b"hello"
    assert memory.read(0x10000 + PAGE_SIZE, 5) == b"hello"
    for address, length in ((0, 1), (0x10000 + SIZE - 1, 2), (0x10000 + SIZE, 1), (1 << 63, 8)):
        with pytest.raises(VirtqueueError, match="outside the guest's memory"):
            memory.read(address, length)


def test_read_allocates_nothing(memory: GuestMemory, ram: Ram) -> None:
    assert memory.read(0x10000, SIZE) == bytes(SIZE)
    assert ram.pages(0) == set()


def test_read_of_a_file_that_was_cut_is_an_error_and_not_a_signal() -> None:
    ram = Ram(SIZE, sealed=False)
    memory = GuestMemory()
    memory.replace(RegionTable([region()]), [os.dup(ram.fd)])
    os.ftruncate(ram.fd, PAGE_SIZE)
    with pytest.raises(VirtqueueError, match="memory ends before"):
        memory.read(0x10000 + PAGE_SIZE, 8)
    memory.close()
    ram.close()


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        (place(0, 0x800, 0xA00), 1),  # as drivers allocate them
        (place(0x4000, 0x2000, 0), 1),
        (place(0, 0x20000, 0x30000), 3),
        (place(0x123 * 16, 0x3002, 0x5004), 1),
    ],
)
def test_ring_is_mapped_by_its_pages_only(memory: GuestMemory, ram: Ram, parts: RingPlace, count: int) -> None:
    before = mappings()
    mapped = memory.map_ring(2, parts)
    assert mappings() == before + count
    assert isinstance(mapped.ring, SplitRing)
    mapped.ring.used[1] = 0x1234
    assert ram.map[parts.used.offset + 2 : parts.used.offset + 4] == b"\x34\x12"
    ram.map[parts.available.offset + 2 : parts.available.offset + 4] = b"\x78\x56"
    assert mapped.ring.avail[1] == 0x5678
    assert memory.device.is_protected(FileRange(0, parts.used.offset, 1))
    memory.unmap_ring(2, mapped)
    assert mappings() == before
    assert not memory.device.is_protected(FileRange(0, parts.used.offset, 1))


def test_hugetlb_file_is_known_by_its_page_size() -> None:
    try:
        fd = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"this kernel has no huge pages: {error.strerror}")
    try:
        page_size = os.fstat(fd).st_blksize
        os.ftruncate(fd, page_size)  # which takes no huge page yet
        assert open_region(region(size=page_size), fd).page_size == page_size > PAGE_SIZE
    finally:
        os.close(fd)


def test_ring_in_huge_pages_is_mapped_from_the_beginning_of_one() -> None:
    """The kernel maps a hugetlb file at multiples of its page only; an ordinary file stands in for one."""
    ram = Ram(4 * HUGE_PAGE)
    at = 2 * HUGE_PAGE - 0x3000
    parts = place(at, at + 0x2000, at + 0x4000)  # across the boundary of two
    before = mappings()
    mapped = MappedRing(parts, [RegionFile(ram.fd, HUGE_PAGE, True, (0, 0))])
    lines = [line for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines() if "test-ram" in line]
    spans = [(line.split()[0].split("-"), int(line.split()[2], 16)) for line in lines]
    assert (HUGE_PAGE, 2 * HUGE_PAGE) in [(offset, int(end, 16) - int(start, 16)) for (start, end), offset in spans]
    assert isinstance(mapped.ring, SplitRing)
    mapped.ring.used[1] = 0x1234
    assert ram.map[parts.used.offset + 2 : parts.used.offset + 4] == b"\x34\x12"
    mapped.close()
    assert mappings() == before
    ram.close()


def test_ring_whose_file_was_cut_is_refused_and_leaves_no_mapping() -> None:
    ram = Ram(SIZE, sealed=False)
    memory = GuestMemory()
    memory.replace(RegionTable([region()]), [os.dup(ram.fd)])
    os.ftruncate(ram.fd, 0x8000)
    before, fds = mappings(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(VhostUserError, match="cannot be mapped"):
        memory.map_ring(0, place(0, 0x4000, 0x20000))
    assert (mappings(), len(os.listdir("/proc/self/fd"))) == (before, fds)
    memory.close()
    ram.close()


def test_packed_ring_is_mapped_like_any_other(memory: GuestMemory, ram: Ram) -> None:
    before = mappings()
    parts = RingPlace(
        size=100,
        packed=True,
        descriptor=FileRange(0, 0, 1600),
        available=FileRange(0, 1600, 4),
        used=FileRange(0, 0x6000, 4),
    )
    mapped = memory.map_ring(2, parts)
    assert isinstance(mapped.ring, PackedRing)
    mapped.ring.halves[7] = 0x8080
    mapped.ring.device_event[0] = 0x12345678
    assert (ram.map[14:16], ram.map[0x6000:0x6004]) == (b"\x80\x80", b"\x78\x56\x34\x12")
    assert memory.device.is_protected(FileRange(0, 0x6000, 1))
    memory.unmap_ring(2, mapped)
    assert mappings() == before


def test_written_bytes_are_the_guests(memory: GuestMemory, ram: Ram) -> None:
    memory.write(0x10000 + PAGE_SIZE - 2, b"abcd")  # over the edge of a page
    assert os.pread(ram.fd, 6, PAGE_SIZE - 3) == b"\0abcd\0"
    assert memory.read(0x10000 + PAGE_SIZE - 2, 4) == b"abcd"


@pytest.mark.parametrize("address", [0, 0x10000 - 1, 0x10000 + SIZE - 1])
def test_write_outside_of_memory_is_refused(memory: GuestMemory, address: int) -> None:
    with pytest.raises(VirtqueueError, match="outside the guest's memory"):
        memory.write(address, b"ab")


def test_write_does_not_lengthen_a_file_that_was_cut_short() -> None:
    other = Ram(SIZE, sealed=False)
    memory = GuestMemory()
    memory.replace(RegionTable([region()]), [os.dup(other.fd)])
    os.ftruncate(other.fd, PAGE_SIZE)
    with pytest.raises(VirtqueueError, match="cannot be mapped for writing"):
        memory.write(0x10000 + 2 * PAGE_SIZE, b"ab")
    assert os.fstat(other.fd).st_size == PAGE_SIZE
    memory.close()
    other.close()
