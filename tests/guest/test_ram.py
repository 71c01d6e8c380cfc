"""The guest's memory: its pattern and what finds it damaged, its seals, what it costs the host."""

import errno
import fcntl
import os
from collections.abc import Iterator

import pytest

from guest.ram import GuestRam
from host.memory.discard import punch_hole
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from tests.harness.processes import open_fds

PAGES = 64
STAMP = 7


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(PAGES * PAGE_SIZE)
    yield ram
    ram.close()


def word(ram: GuestRam, page: int, index: int) -> int:
    return int.from_bytes(os.pread(ram.fd, 8, page * PAGE_SIZE + index * 8), "little")


def test_pages_carry_their_own_pattern_at_both_ends(ram: GuestRam) -> None:
    ram.fill(8, 16, STAMP)
    begins = [word(ram, page, 0) for page in range(8, 24)]
    ends = [word(ram, page, 511) for page in range(8, 24)]
    assert begins == [STAMP << 36 | page for page in range(8, 24)]
    assert ends == [1 << 63 | begin for begin in begins]


@pytest.mark.parametrize(("pfn", "pages"), [(0, 1), (0, PAGES), (PAGES - 1, 1), (3, 5)])
@pytest.mark.parametrize("stamp", [0, 1, (1 << 27) - 1, 1 << 27, (1 << 27) + 5])
def test_filled_pages_are_whole_and_others_untouched(ram: GuestRam, pfn: int, pages: int, stamp: int) -> None:
    ram.fill(pfn, pages, stamp)
    assert ram.count_corrupted(pfn, pages, stamp) == 0
    assert ram.resident_bytes == pages * PAGE_SIZE


@pytest.mark.parametrize("stamp", [0, STAMP])
def test_pages_discarded_in_use_are_counted(ram: GuestRam, stamp: int) -> None:
    ram.fill(0, PAGES, stamp)
    assert punch_hole(ram.fd, 0, PAGE_SIZE) == 0
    assert punch_hole(ram.fd, 10 * PAGE_SIZE, 3 * PAGE_SIZE) == 0
    assert ram.count_corrupted(0, PAGES, stamp) == 4
    assert ram.count_corrupted(0, 1, stamp) == 1
    assert ram.count_corrupted(1, 9, stamp) == 0
    assert ram.count_corrupted(10, 3, stamp) == 3
    assert ram.count_corrupted(13, PAGES - 13, stamp) == 0


@pytest.mark.parametrize("offset", [0, 7, PAGE_SIZE - 8, PAGE_SIZE - 1], ids="{} bytes in".format)
@pytest.mark.parametrize("page", [0, 5, PAGES - 1])
def test_byte_overwritten_at_either_end_of_a_page_is_one_corrupted_page(ram: GuestRam, page: int, offset: int) -> None:
    ram.fill(0, PAGES, STAMP)
    at = page * PAGE_SIZE + offset
    (byte,) = os.pread(ram.fd, 1, at)
    ram.write(at, bytes([byte ^ 0x40]))
    assert ram.count_corrupted(0, PAGES, STAMP) == 1
    assert ram.count_corrupted(page, 1, STAMP) == 1


def test_page_damaged_at_both_ends_counts_once(ram: GuestRam) -> None:
    ram.fill(0, PAGES, STAMP)
    ram.write(PAGE_SIZE, bytes(PAGE_SIZE))
    assert ram.count_corrupted(0, PAGES, STAMP) == 1


def test_overwriting_across_a_boundary_damages_the_pages_on_both_sides(ram: GuestRam) -> None:
    ram.fill(0, PAGES, STAMP)
    ram.write(4 * PAGE_SIZE - 8, b"\xff" * 16)
    assert [page for page in range(PAGES) if ram.count_corrupted(page, 1, STAMP)] == [3, 4]


def test_content_of_another_page_or_of_an_earlier_use_is_corruption(ram: GuestRam) -> None:
    ram.fill(0, 8, STAMP)
    ram.write(2 * PAGE_SIZE, os.pread(ram.fd, PAGE_SIZE, PAGE_SIZE))
    assert ram.count_corrupted(0, 8, STAMP) == 1
    assert ram.count_corrupted(0, 8, STAMP + 1) == 8


def test_page_filled_again_is_whole(ram: GuestRam) -> None:
    ram.fill(0, 8, STAMP)
    punch_hole(ram.fd, 0, 8 * PAGE_SIZE)
    ram.fill(0, 8, STAMP + 1)
    assert ram.count_corrupted(0, 8, STAMP + 1) == 0


def test_resident_bytes_follow_what_is_touched_and_discarded(ram: GuestRam) -> None:
    assert ram.resident_bytes == 0
    ram.fill(0, 10, STAMP)
    assert ram.resident_bytes == 10 * PAGE_SIZE
    ram.fill(5, 10, STAMP)
    assert ram.resident_bytes == 15 * PAGE_SIZE
    punch_hole(ram.fd, 0, 4 * PAGE_SIZE)
    assert ram.resident_bytes == 11 * PAGE_SIZE
    punch_hole(ram.fd, 0, ram.size)
    assert ram.resident_bytes == 0


def test_residency_says_which_pages_the_host_holds() -> None:
    """Across chunks, with data and holes at their ends, and a last chunk that is not full."""
    pages = 12 * 1024 + 7
    ram = GuestRam(pages * PAGE_SIZE)
    try:
        expected = bytearray(pages)
        assert ram.residency() == expected
        for pfn, count in ((1, 2), (510, 4), (1023, 1), (1535, 8)):
            ram.fill(pfn, count, STAMP)
            expected[pfn : pfn + count] = b"\x01" * count
            assert ram.residency() == expected
            assert expected.count(1) * PAGE_SIZE == ram.resident_bytes
        os.pwrite(ram.fd, b"device", 700 * PAGE_SIZE)  # not mapped here
        punch_hole(ram.fd, 511 * PAGE_SIZE, 2 * PAGE_SIZE)
        expected[700] = 1
        expected[511:513] = bytes(2)
        assert ram.residency() == expected
        ram.fill(0, pages, STAMP)
        expected[:] = b"\x01" * pages
        assert ram.residency() == expected
        for pfn, count in ((9000, 1), (4096, 3), (pages - 2, 2)):
            punch_hole(ram.fd, pfn * PAGE_SIZE, count * PAGE_SIZE)
            expected[pfn : pfn + count] = bytes(count)
            assert ram.residency() == expected
    finally:
        ram.close()


def test_residency_of_a_closed_memory_is_an_error() -> None:
    ram = GuestRam(PAGE_SIZE)
    ram.close()
    with pytest.raises(BalloonError, match=f"^SEEK_DATA in the guest's memory: {os.strerror(errno.EBADF)}$"):
        ram.residency()


def test_view_and_the_file_are_the_same_memory(ram: GuestRam) -> None:
    with ram.view(3 * PAGE_SIZE, 16) as view:
        assert len(view) == 16
        view[4:8] = b"abcd"
        assert os.pread(ram.fd, 16, 3 * PAGE_SIZE) == bytes(4) + b"abcd" + bytes(8)
        os.pwrite(ram.fd, b"z", 3 * PAGE_SIZE)
        assert view[0] == ord("z")
    ram.write(ram.size - 2, b"xy")
    assert os.pread(ram.fd, 10, ram.size - 2) == b"xy"


def test_file_is_sealed_for_good_but_can_be_punched(ram: GuestRam) -> None:
    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    assert fcntl.fcntl(ram.fd, fcntl.F_GET_SEALS) == wanted
    for size in (0, ram.size - PAGE_SIZE, ram.size + PAGE_SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(ram.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(ram.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(ram.fd).st_size == ram.size
    assert punch_hole(ram.fd, 0, PAGE_SIZE) == 0


def test_programs_started_from_here_do_not_inherit_the_file(ram: GuestRam) -> None:
    assert not os.get_inheritable(ram.fd)


def test_close_gives_the_file_up() -> None:
    before = open_fds(os.getpid()).keys()
    ram = GuestRam(PAGE_SIZE)
    fd = ram.fd
    ram.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)
    assert open_fds(os.getpid()).keys() == before


@pytest.mark.parametrize("size", [0, -PAGE_SIZE, 1 << 62, (1 << 63) - PAGE_SIZE, 1 << 63, 1 << 80])
def test_impossible_size_is_one_line_and_leaves_no_file_open(size: int) -> None:
    before = open_fds(os.getpid()).keys()
    with pytest.raises(BalloonError, match=f"^no memory of {size} bytes for the guest: .+$") as raised:
        GuestRam(size)
    assert "\n" not in str(raised.value)
    assert open_fds(os.getpid()).keys() == before


def test_hole_is_in_the_file_and_in_no_region() -> None:
    ram = GuestRam(8 * PAGE_SIZE, hole=range(2 * PAGE_SIZE, 5 * PAGE_SIZE))
    try:
        assert ram.regions == ((0, 2 * PAGE_SIZE), (5 * PAGE_SIZE, 6 * PAGE_SIZE))
        assert os.fstat(ram.fd).st_size == ram.size == 11 * PAGE_SIZE
        ram.fill(0, 2, STAMP)
        ram.fill(5, 6, STAMP)
        assert ram.resident_bytes == 8 * PAGE_SIZE
        assert ram.count_corrupted(5, 6, STAMP) == 0
        assert word(ram, 5, 0) & 0xFFF == 5
    finally:
        ram.close()
