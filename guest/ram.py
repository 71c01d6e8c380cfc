"""The guest's memory: a memfd that is shared with the device, and the content of its pages.

The memfd is sealed against shrinking, so that a device can map its ring pages without the risk of SIGBUS.
"""

import ctypes
import errno
import fcntl
import mmap
import os
from array import array
from typing import Final

from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE

_WORDS_PER_PAGE: Final = PAGE_SIZE // 8
_LAST_WORD: Final = _WORDS_PER_PAGE - 1
_STAMP_SHIFT: Final = 36
_STAMP_MASK: Final = (1 << 27) - 1
_LAST_WORD_MARK: Final = 1 << 63
_CHUNK_BYTES: Final = 2 << 20
_RUN_BYTES: Final = 16 << 20
"""What one call of mincore looks at: a pageblock, the usual least block of a report; and after so much without a hole,
as much again."""

_MINCORE: Final = ctypes.CDLL(None, use_errno=True).mincore
_MINCORE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class GuestRam:
    """``size`` bytes of guest memory from guest address 0, none of it touched at first.

    With ``hole``, a range of guest addresses, memory that would be in the hole or above begins at its end. An offset in
    the memfd is a guest address, so the memfd is longer than ``size`` by the hole, which stays a hole in the file.

    Content is kept as a pattern: the first and the last word of every page in use carry a stamp and the page's number,
    which detects a page that was discarded while in use, or overwritten from either end.

    Raises:
        BalloonError: the system has no room for an address range of that size.
    """

    def __init__(self, size: int, *, hole: range = range(0)) -> None:
        size += len(hole)
        self.size = size
        """Length of the memfd in bytes: the first guest address above all memory."""
        self.regions = ((0, hole.start), (hole.stop, size - hole.stop)) if hole else ((0, size),)
        """Guest address and length of each contiguous part of the memory."""
        self.fd = os.memfd_create("guest-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._mapping = mmap.mmap(self.fd, size)
        except (OSError, ValueError, OverflowError) as error:
            os.close(self.fd)
            reason = os.strerror(error.errno or errno.ENOMEM) if isinstance(error, OSError) else str(error)
            raise BalloonError(f"no memory of {size} bytes for the guest: {reason}") from error
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self._bytes = memoryview(self._mapping)
        self._words = self._bytes.cast("Q")

    def view(self, address: int, length: int) -> memoryview:
        """Return a writable view of ``length`` bytes at guest ``address``."""
        return self._bytes[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at guest ``address``."""
        self._bytes[address : address + len(data)] = data

    def fill(self, pfn: int, pages: int, stamp: int) -> None:
        """Touch ``pages`` pages from page frame ``pfn``, leaving the pattern of ``stamp`` in each."""
        first, last = self._slices(pfn, pages)
        pattern = _pattern(pfn, pages, stamp)
        self._words[first] = memoryview(pattern)
        self._words[last] = memoryview(_marked(pattern))

    def count_corrupted(self, pfn: int, pages: int, stamp: int) -> int:
        """Return how many of ``pages`` pages from ``pfn`` do not hold the pattern of ``stamp`` any more."""
        first, last = self._slices(pfn, pages)
        pattern = _pattern(pfn, pages, stamp)
        begins, ends = self._words[first].tolist(), self._words[last].tolist()
        marked = _marked(pattern)
        if begins == pattern.tolist() and ends == marked.tolist():
            return 0
        found = zip(begins, ends, pattern, marked, strict=True)
        return sum(begin != first_word or end != last_word for begin, end, first_word, last_word in found)

    @staticmethod
    def _slices(pfn: int, pages: int) -> tuple[slice, slice]:
        begin, end = pfn * _WORDS_PER_PAGE, (pfn + pages) * _WORDS_PER_PAGE
        return slice(begin, end, _WORDS_PER_PAGE), slice(begin + _LAST_WORD, end, _WORDS_PER_PAGE)

    @property
    def resident_bytes(self) -> int:
        """Bytes that the host holds for the memory at this moment."""
        return os.fstat(self.fd).st_blocks * 512

    def residency(self) -> bytearray:
        """Return one byte for each page from guest address 0 on: 1 where the host has memory for it, else 0.

        A snapshot: the device may discard pages meanwhile. ``mincore`` is fast where pages are mapped, and slow in
        holes; SEEK_DATA (lseek(2)) is fast in holes, and slow in data. So it finds where the next data begin, and
        ``mincore`` looks at them, a chunk at a time. A page in swap counts as 0.

        Raises:
            BalloonError: the system cannot tell.
        """
        found = bytearray(self.size // PAGE_SIZE)
        vector = ctypes.addressof(ctypes.c_char.from_buffer(found))
        begin = run = self._next_data(0)
        while begin < self.size:
            length = _CHUNK_BYTES - begin % _CHUNK_BYTES if begin - run < _RUN_BYTES else _RUN_BYTES
            end = min(begin + length, self.size)
            if _MINCORE(self._address + begin, end - begin, vector + begin // PAGE_SIZE):
                raise BalloonError(f"mincore of the guest's memory: {os.strerror(ctypes.get_errno())}")
            is_full = found.find(0, begin // PAGE_SIZE, end // PAGE_SIZE) < 0
            begin = self._next_data(end)
            if begin != end or not is_full:
                run = begin
        return found

    def _next_data(self, begin: int) -> int:
        # The next page, from `begin` on, that is not in a hole; the size at the end.
        try:
            return os.lseek(self.fd, begin, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise BalloonError(f"SEEK_DATA in the guest's memory: {error.strerror}") from error
            return self.size

    def close(self) -> None:
        """Release the memory. All views must be released before."""
        self._words.release()
        self._bytes.release()
        self._mapping.close()
        os.close(self.fd)


def _pattern(pfn: int, pages: int, stamp: int) -> "array[int]":
    begin = (stamp & _STAMP_MASK) << _STAMP_SHIFT | pfn
    return array("Q", range(begin, begin + pages))


def _marked(pattern: "array[int]") -> "array[int]":
    begin = pattern[0] | _LAST_WORD_MARK
    return array("Q", range(begin, begin + len(pattern)))
