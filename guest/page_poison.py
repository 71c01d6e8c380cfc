"""Free pages that hold a pattern: zero as with Linux's ``init_on_free``, 0xAA as with its ``page_poisoning``.

A page must still hold the pattern when it is allocated, which detects a device that returns a reported page with other
content.

Only the first and the last word of each page are checked, as workloads write only these (:mod:`guest.ram`). So a free
restores these two; a page that the device may have changed is filled as a whole.
"""

from array import array
from collections.abc import Callable
from typing import Final

from protocol.memory import PAGE_SIZE

_WORDS_PER_PAGE: Final = PAGE_SIZE // 8
_CHUNK_PAGES: Final = 1024


class PagePoison:
    """The pattern ``byte`` in guest memory, of which ``view`` gives a writable view by guest address and length."""

    def __init__(self, view: Callable[[int, int], memoryview], byte: int) -> None:
        self._view = view
        self.byte = byte
        self._chunk = bytes([byte]) * (_CHUNK_PAGES * PAGE_SIZE)
        self._word = int.from_bytes(self._chunk[:8], "little")

    def fill(self, pfn: int, pages: int) -> None:
        """Fill ``pages`` whole pages from ``pfn`` with the pattern."""
        for begin in range(pfn, pfn + pages, _CHUNK_PAGES):
            size = min(_CHUNK_PAGES, pfn + pages - begin) * PAGE_SIZE
            self._view(begin * PAGE_SIZE, size)[:] = memoryview(self._chunk)[:size]

    def restore(self, pfn: int, pages: int) -> None:
        """Make ``pages`` pages from ``pfn``, which held the pattern before they were used, hold it again."""
        words = self._view(pfn * PAGE_SIZE, pages * PAGE_SIZE).cast("Q")
        pattern = memoryview(array("Q", [self._word]) * pages)
        words[::_WORDS_PER_PAGE] = pattern
        words[_WORDS_PER_PAGE - 1 :: _WORDS_PER_PAGE] = pattern

    def count_spoilt(self, pfn: int, pages: int) -> int:
        """Return how many of ``pages`` pages from ``pfn`` do not hold the pattern."""
        words = self._view(pfn * PAGE_SIZE, pages * PAGE_SIZE).cast("Q")
        begins, ends = words[::_WORDS_PER_PAGE].tolist(), words[_WORDS_PER_PAGE - 1 :: _WORDS_PER_PAGE].tolist()
        if begins.count(self._word) == ends.count(self._word) == pages:
            return 0
        return sum(begin != self._word or end != self._word for begin, end in zip(begins, ends, strict=True))
