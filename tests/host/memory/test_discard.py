"""Discarding for real: exactly the range, and an errno instead of an exception."""

import errno
import fcntl
import os
from pathlib import Path

from host.memory.discard import punch_hole
from protocol.memory import PAGE_SIZE
from tests.harness.virtual_machine import DATA_AT, Ram, page_pattern


def test_discarded_range_alone_is_gone_and_reads_as_zero() -> None:
    ram = Ram()
    ram.touch(DATA_AT, 8 * PAGE_SIZE)
    assert punch_hole(ram.fd, DATA_AT + 2 * PAGE_SIZE, 3 * PAGE_SIZE) == 0
    assert ram.pages() == {DATA_AT + i * PAGE_SIZE for i in (0, 1, 5, 6, 7)}
    assert not ram.spoilt_pages()
    assert ram.map[DATA_AT + 2 * PAGE_SIZE : DATA_AT + 5 * PAGE_SIZE] == bytes(3 * PAGE_SIZE)
    assert os.fstat(ram.fd).st_size == ram.size
    ram.close()


def test_discarded_page_can_be_used_again() -> None:
    ram = Ram()
    for _ in range(3):
        ram.touch(DATA_AT, PAGE_SIZE)
        assert ram.map[DATA_AT : DATA_AT + PAGE_SIZE] == page_pattern(DATA_AT)
        assert punch_hole(ram.fd, DATA_AT, PAGE_SIZE) == 0
    ram.close()


def test_offsets_beyond_four_gigabytes_are_not_cut() -> None:
    fd = os.memfd_create("large")
    at = (5 << 30) + PAGE_SIZE
    os.pwrite(fd, b"x" * PAGE_SIZE, at)
    os.pwrite(fd, b"x" * PAGE_SIZE, at - (4 << 30))
    assert punch_hole(fd, at, PAGE_SIZE) == 0
    assert os.pread(fd, 1, at - (4 << 30)) == b"x"
    assert os.fstat(fd).st_blocks * 512 == PAGE_SIZE
    os.close(fd)


def test_failures_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE_SIZE))
    with path.open("rb") as read_only:
        assert punch_hole(read_only.fileno(), 0, PAGE_SIZE) == errno.EBADF
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, PAGE_SIZE)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert punch_hole(sealed, 0, PAGE_SIZE) == errno.EPERM
    os.close(sealed)
    reading, writing = os.pipe()
    assert punch_hole(writing, 0, PAGE_SIZE) == errno.ESPIPE
    os.close(reading)
    os.close(writing)
    assert punch_hole(-1, 0, PAGE_SIZE) == errno.EBADF
