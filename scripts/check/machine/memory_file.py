"""The memory of the machine that a device is tried with: a file of ours, so that what a device discards can be seen.

The file system knows exactly which pages of the file are there. A page that a device discarded is a hole; a page that
it wrote, or that was touched by mistake, is one that holds something else than was put there.
"""

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.virtio_ring import QUEUE_SIZE_MAX

MIB: Final = 1 << 20

MEMORY_BYTES: Final = 256 * MIB

RINGS_AT: Final = 2 * MIB
"""Offset of the first ring. What is below is left to the firmware of a target that has one."""

RING_STRIDE: Final = MIB
RINGS_MAX: Final = 8

TABLES_AT: Final = RINGS_AT + RINGS_MAX * RING_STRIDE
"""Offset of the indirect tables."""

TABLES_STRIDE: Final = MIB // 4

BUFFERS_AT: Final = TABLES_AT + RINGS_MAX * TABLES_STRIDE
"""Offset of the buffers that hold page frame numbers, statistics and command ids."""

BUFFERS_STRIDE: Final = MIB // 4

DATA_AT: Final = 16 * MIB
"""Offset of the first page that a case may give away."""

F_SEAL_FUTURE_WRITE: Final = 0x0010  # linux/fcntl.h

assert 16 * QUEUE_SIZE_MAX + 2 * QUEUE_SIZE_MAX + 8 * QUEUE_SIZE_MAX < RING_STRIDE
assert BUFFERS_AT + RINGS_MAX * BUFFERS_STRIDE <= DATA_AT


class MemoryFile:
    """A memory file, mapped as the process of a virtual machine maps it.

    ``path`` names a file in a directory, for a target that opens it by name; without one it is a memfd that cannot be
    made smaller, which is what virtual machines use, unless it is ``shrinkable``.
    """

    def __init__(self, size: int = MEMORY_BYTES, path: Path | None = None, *, shrinkable: bool = False) -> None:
        if path is None:
            self.fd = os.memfd_create("balloon-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, size)
            if not shrinkable:
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        else:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self.fd, size)
        self.size = size
        self.map = mmap.mmap(self.fd, size)
        self.view = memoryview(self.map)

    def touch(self, offset: int, length: int) -> None:
        """Fill whole pages with a pattern of their own, so that each is there and differs from all others."""
        for at in range(offset, offset + length, PAGE_SIZE):
            self.map[at : at + PAGE_SIZE] = page_pattern(at)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes without touching a page that is not there."""
        return os.pread(self.fd, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        self.map[offset : offset + len(data)] = data

    def present(self, start: int = DATA_AT, end: int | None = None) -> set[int]:
        """Return the offsets of the pages from ``start`` to ``end`` that the file has."""
        return {at for run in self._runs(start, self.size if end is None else end) for at in run}

    def _runs(self, start: int, end: int) -> Iterator[range]:
        at = start
        while at < end:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:
                return
            hole = min(os.lseek(self.fd, at, os.SEEK_HOLE), end)
            yield range(at, hole, PAGE_SIZE)
            at = max(at, hole)

    def spoilt(self, pages: Iterable[int] | None = None) -> set[int]:
        """Return those of ``pages``, by default of all that are there, that do not hold what :meth:`touch` wrote."""
        looked_at = self.present() if pages is None else pages
        return {at for at in looked_at if self.read(at, PAGE_SIZE) != page_pattern(at)}

    def discard(self, offset: int, length: int) -> None:
        """Have pages away again that a case has left, as a machine that starts anew has."""
        self.map.madvise(mmap.MADV_REMOVE, offset, length)

    def truncate(self, size: int) -> None:
        """Take the memory from ``size`` on away from all who have mapped it; a look there then ends their process."""
        os.ftruncate(self.fd, size)

    def seal_against_writing(self) -> None:
        """Have the kernel refuse new writable mappings, writes and holes; mappings that there are stay as they are.

        Raises:
            OSError: the kernel does not know this seal (Linux 5.1 does).
        """
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)

    def close(self) -> None:
        """Unmap and close. Views of rings have to be released before; one that a signal left keeps the mapping."""
        with contextlib.suppress(BufferError):
            self.view.release()
            self.map.close()
        os.close(self.fd)


def page_pattern(offset: int) -> bytes:
    """Return what :meth:`MemoryFile.touch` writes into the page at ``offset``."""
    return struct.pack("<Q", offset | 1) * (PAGE_SIZE // 8)


def as_ranges(pages: Iterable[int]) -> str:
    """Return page offsets in words: runs of pages, the first few of them."""
    runs: list[list[int]] = []
    for at in sorted(pages):
        if runs and runs[-1][1] == at:
            runs[-1][1] = at + PAGE_SIZE
        else:
            runs.append([at, at + PAGE_SIZE])
    words = [f"{start:#x}-{end:#x}" for start, end in runs[:4]]
    return ", ".join(words) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
