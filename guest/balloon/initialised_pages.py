"""Pages whose content the device has told the driver: they need no clearing before they are used.

DEVICE_INIT_REPORTED and DEVICE_INIT_ON_INFLATE are drafts (oasis-tcs/virtio-spec #244 and #242) and may change; see
:class:`protocol.virtio_balloon.BalloonFeature` for what they say. A driver that negotiated one of them learns which
pages hold zeros, or ``poison_val`` where PAGE_POISON is negotiated, and a kernel leaves these out where it would clear
memory: for a process, or with ``init_on_alloc``.
"""

from collections.abc import Callable, Sequence
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.virtio import feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature

DRAFTS: Final = {
    "init-reported": BalloonFeature.DEVICE_INIT_REPORTED,
    "init-on-inflate": BalloonFeature.DEVICE_INIT_ON_INFLATE,
}
"""By the names that ``--draft`` takes."""

DRAFT_FEATURES: Final = feature_mask(*DRAFTS.values())


def initialised_pfns(pfns: Sequence[int], bitmap: bytes) -> list[int]:
    """Return those of ``pfns`` whose bit is set in ``bitmap``, the lowest bit of a byte first. Pages beyond the end of
    the bitmap are not initialised."""
    return [
        pfn for number, pfn in enumerate(pfns) if number // 8 < len(bitmap) and bitmap[number // 8] >> number % 8 & 1
    ]


class InitialisedPages:
    """The pages that are known to be initialised, until they are used.

    ``view`` gives a view of guest memory by address and length. A page is looked at when it is taken into use: one that
    holds something else than the device has said counts as corrupted.
    """

    def __init__(self, view: Callable[[int, int], memoryview]) -> None:
        self._view = view
        self._known: set[int] = set()
        self._content = bytes(PAGE_SIZE)
        self.uncleared_pages = 0
        """Pages that were taken into use without clearing them."""

    def attach(self, features: int, page_poison: int) -> None:
        """A device with these negotiated ``features``: its initialised pages hold ``page_poison`` if it knows that.

        What an earlier device said is forgotten if it said something else.
        """
        byte = page_poison & 0xFF if has_feature(features, BalloonFeature.PAGE_POISON) else 0
        content = bytes([byte]) * PAGE_SIZE
        if content != self._content:
            self._known.clear()
        self._content = content

    def holds(self, byte: int) -> bool:
        """Return whether initialised pages are filled with ``byte``."""
        return self._content[0] == byte

    def add(self, pfn: int, pages: int) -> None:
        """The device says that ``pages`` pages from ``pfn`` on are initialised."""
        self._known.update(range(pfn, pfn + pages))

    def forget(self, pfn: int, pages: int) -> None:
        """The device may change these pages, or the driver writes to them."""
        self._known.difference_update(range(pfn, pfn + pages))

    def __contains__(self, pfn: int) -> bool:
        return pfn in self._known

    def take(self, pfn: int, pages: int) -> int:
        """Take pages into use; return how many of them do not hold what the device has said."""
        taken = self._known.intersection(range(pfn, pfn + pages))
        if not taken:
            return 0
        self._known -= taken
        spoilt = sum(self._view(page * PAGE_SIZE, PAGE_SIZE) != self._content for page in taken)
        self.uncleared_pages += len(taken)
        return spoilt
