"""The states of a page of a guest: which event moves it from where to where, and by which rule an event is a race.

Two parties may change a page: the guest that uses it, and the device that discards it. A state says who may. The guest
lends a page in three ways, each with a queue of its own::

    report    FREE -> ISOLATED -> IN_FLIGHT -> ACKNOWLEDGED -> FREE
    balloon   FREE -> ISOLATED -> INFLATING -> BALLOONED -> DEFLATING -> DEFLATED -> FREE
    hint      FREE -> ISOLATED -> HINTED -> HINT_USED -> HINT_OVER -> FREE

The device may discard in IN_FLIGHT, INFLATING, HINTED and HINT_USED; with MUST_TELL_HOST also in BALLOONED and
DEFLATING. The guest may touch in IN_USE alone. Every other pair of a state and an event is a race, or cannot come up.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple


class PageState(IntEnum):
    """Who has a page, and for what."""

    FREE = 0
    """On a free list of the guest."""
    IN_USE = 1
    """Allocated by the guest, which reads and writes it."""
    ISOLATED = 2
    """Taken off the free lists by the driver. The device does not know of it, or no longer."""
    IN_FLIGHT = 3
    """In a report that the device has not acknowledged."""
    ACKNOWLEDGED = 4
    """In a report that the device has acknowledged, and not on a free list again."""
    INFLATING = 5
    """On the inflate queue, not acknowledged."""
    BALLOONED = 6
    """In the balloon."""
    DEFLATING = 7
    """On the deflate queue, not acknowledged."""
    DEFLATED = 8
    """Its deflate is acknowledged. It is not on a free list again."""
    KEPT = 9
    """In the balloon since before a reset. The device knows nothing of it."""
    HINTED = 10
    """In a hint that the device has not used."""
    HINT_USED = 11
    """In a hint that the device has used. The driver keeps the page for the round."""
    HINT_OVER = 12
    """The device has shown DONE, or is reset; the driver has still to release the page."""

    @property
    def words(self) -> str:
        """What it is, to go after "which is"."""
        return _STATE_WORDS[self]


_STATE_WORDS: Final = (
    "free",
    "in use",
    "isolated",
    "in flight in a report",
    "acknowledged",
    "in flight on the inflate queue",
    "in the balloon",
    "in flight on the deflate queue",
    "deflated",
    "in the balloon since before a reset",
    "in flight in a hint",
    "held for the round of hints",
    "held after the round of hints",
)


class PageEvent(IntEnum):
    """What happens to a page."""

    ALLOCATE = 0
    TOUCH = 1
    FREE = 2
    ISOLATE = 3
    REPORT = 4
    INFLATE = 5
    DEFLATE = 6
    HINT = 7
    DISCARD = 8
    ACKNOWLEDGE = 9
    DONE = 10
    RESET = 11
    MARK = 12

    @property
    def words(self) -> str:
        """Who does what, to go before the pages."""
        return _EVENT_WORDS[self]


_EVENT_WORDS: Final = (
    "the guest allocates",
    "the guest touches",
    "the guest puts on a free list",
    "the driver isolates",
    "the driver reports",
    "the driver inflates",
    "the driver deflates",
    "the driver hints",
    "the device discards",
    "the device acknowledges",
    "the device shows DONE for",
    "the device is reset with",
    "the guest marks as reported",
)


class Move(NamedTuple):
    """An allowed transition: the state that it leads to, and its source, a clause's id or a function of Linux."""

    to: PageState
    source: str


class Race(NamedTuple):
    """A forbidden one: its name, and the clause's id or the function of Linux that it breaks."""

    name: str
    source: str


_S, _E = PageState, PageEvent

MOVES: Final[Mapping[tuple[PageState, PageEvent], Move]] = MappingProxyType(
    {
        (_S.FREE, _E.ALLOCATE): Move(_S.IN_USE, "mm/page_alloc.c: get_page_from_freelist"),
        (_S.IN_USE, _E.TOUCH): Move(_S.IN_USE, "M-safe"),
        (_S.IN_USE, _E.FREE): Move(_S.FREE, "mm/page_alloc.c: __free_one_page"),
        (_S.FREE, _E.ISOLATE): Move(_S.ISOLATED, "mm/page_alloc.c: __isolate_free_page"),
        # A report, from the scatterlist to the free list. One that failed goes back from ISOLATED.
        (_S.ISOLATED, _E.REPORT): Move(_S.IN_FLIGHT, "BR-4"),
        (_S.IN_FLIGHT, _E.DISCARD): Move(_S.IN_FLIGHT, "BR-7"),
        (_S.IN_FLIGHT, _E.ACKNOWLEDGE): Move(_S.ACKNOWLEDGED, "BR-3"),
        (_S.ACKNOWLEDGED, _E.FREE): Move(_S.FREE, "mm/page_reporting.c: page_reporting_drain"),
        (_S.ISOLATED, _E.FREE): Move(_S.FREE, "mm/page_reporting.c: page_reporting_drain"),
        # The balloon.
        (_S.ISOLATED, _E.INFLATE): Move(_S.INFLATING, "BI-1"),
        (_S.INFLATING, _E.DISCARD): Move(_S.INFLATING, "BI-13"),
        (_S.INFLATING, _E.ACKNOWLEDGE): Move(_S.BALLOONED, "BI-9"),
        (_S.BALLOONED, _E.DEFLATE): Move(_S.DEFLATING, "BI-6"),
        (_S.DEFLATING, _E.ACKNOWLEDGE): Move(_S.DEFLATED, "BI-7"),
        (_S.DEFLATED, _E.FREE): Move(_S.FREE, "BI-7"),
        # Hints. The driver may release a page that the device has used before the round is over.
        (_S.ISOLATED, _E.HINT): Move(_S.HINTED, "BH-4"),
        (_S.HINTED, _E.DISCARD): Move(_S.HINTED, "BH-14"),
        (_S.HINTED, _E.ACKNOWLEDGE): Move(_S.HINT_USED, "BH-7"),
        (_S.HINT_USED, _E.DISCARD): Move(_S.HINT_USED, "BH-14"),
        (_S.HINT_USED, _E.FREE): Move(_S.FREE, "BH-7"),
        (_S.HINTED, _E.DONE): Move(_S.HINT_OVER, "BH-16"),
        (_S.HINT_USED, _E.DONE): Move(_S.HINT_OVER, "BH-16"),
        (_S.HINT_OVER, _E.DONE): Move(_S.HINT_OVER, "BH-16"),
        (_S.HINT_OVER, _E.FREE): Move(_S.FREE, "BH-10"),
        # A reset ends every loan. The balloon stays inflated: a message that the driver has not seen acknowledged is
        # sent to the next device.
        (_S.IN_FLIGHT, _E.RESET): Move(_S.ISOLATED, "G-11"),
        (_S.INFLATING, _E.RESET): Move(_S.ISOLATED, "G-11"),
        (_S.ACKNOWLEDGED, _E.RESET): Move(_S.ISOLATED, "G-11"),
        (_S.BALLOONED, _E.RESET): Move(_S.KEPT, "G-11"),
        (_S.DEFLATING, _E.RESET): Move(_S.KEPT, "G-11"),
        (_S.DEFLATED, _E.RESET): Move(_S.KEPT, "G-11"),
        (_S.KEPT, _E.INFLATE): Move(_S.INFLATING, "BI-1"),
        (_S.KEPT, _E.DEFLATE): Move(_S.DEFLATING, "BI-6"),
        (_S.HINTED, _E.RESET): Move(_S.HINT_OVER, "G-11"),
        (_S.HINT_USED, _E.RESET): Move(_S.HINT_OVER, "G-11"),
    }
)
"""What each event does in each state where it is allowed. A reset leaves all other states as they are."""

WITHOUT_TELLING: Final[Mapping[tuple[PageState, PageEvent], Move]] = MappingProxyType(
    {
        (_S.BALLOONED, _E.FREE): Move(_S.FREE, "BI-8"),
        (_S.DEFLATING, _E.FREE): Move(_S.FREE, "BI-8"),
        (_S.KEPT, _E.FREE): Move(_S.FREE, "BI-8"),
    }
)
"""What is allowed as well without MUST_TELL_HOST: a page leaves the balloon, and the device learns of it later."""

WITH_TELLING: Final[Mapping[tuple[PageState, PageEvent], Move]] = MappingProxyType(
    {
        (_S.BALLOONED, _E.DISCARD): Move(_S.BALLOONED, "BI-14"),
        (_S.DEFLATING, _E.DISCARD): Move(_S.DEFLATING, "BI-14"),
    }
)
"""What is allowed as well with MUST_TELL_HOST: a page may change until its deflate is acknowledged."""

_LENT: Final = (
    _S.IN_FLIGHT,
    _S.ACKNOWLEDGED,
    _S.INFLATING,
    _S.BALLOONED,
    _S.DEFLATING,
    _S.DEFLATED,
    _S.KEPT,
)

_GET_BUF: Final = "drivers/virtio/virtio_ring.c: virtqueue_get_buf"

RACES: Final[Mapping[tuple[PageState, PageEvent], Race]] = MappingProxyType(
    {
        # A use before the device has given the page back.
        (_S.IN_FLIGHT, _E.TOUCH): Race("touch-before-acknowledgement", "BR-3"),
        (_S.IN_FLIGHT, _E.ALLOCATE): Race("touch-before-acknowledgement", "BR-3"),
        (_S.IN_FLIGHT, _E.FREE): Race("free-before-acknowledgement", "BR-3"),
        (_S.INFLATING, _E.TOUCH): Race("touch-before-acknowledgement", "BI-9"),
        (_S.INFLATING, _E.ALLOCATE): Race("touch-before-acknowledgement", "BI-9"),
        (_S.INFLATING, _E.FREE): Race("free-before-acknowledgement", "BI-9"),
        (_S.INFLATING, _E.DEFLATE): Race("deflate-before-acknowledgement", "BI-10"),
        (_S.BALLOONED, _E.TOUCH): Race("touch-in-balloon", "BI-6"),
        (_S.BALLOONED, _E.ALLOCATE): Race("touch-in-balloon", "BI-6"),
        (_S.BALLOONED, _E.FREE): Race("deflate-not-told", "BI-7"),
        (_S.KEPT, _E.TOUCH): Race("touch-in-balloon", "BI-6"),
        (_S.KEPT, _E.ALLOCATE): Race("touch-in-balloon", "BI-6"),
        (_S.KEPT, _E.FREE): Race("deflate-not-told", "BI-7"),
        (_S.BALLOONED, _E.INFLATE): Race("double-inflate", "BI-11"),
        (_S.INFLATING, _E.INFLATE): Race("double-inflate", "BI-11"),
        (_S.DEFLATING, _E.TOUCH): Race("deflate-before-reply", "BI-7"),
        (_S.DEFLATING, _E.ALLOCATE): Race("deflate-before-reply", "BI-7"),
        (_S.DEFLATING, _E.FREE): Race("deflate-before-reply", "BI-7"),
        (_S.DEFLATING, _E.DEFLATE): Race("double-deflate", "BI-6"),
        (_S.HINTED, _E.TOUCH): Race("hint-reuse", "BH-9"),
        (_S.HINTED, _E.ALLOCATE): Race("hint-reuse", "BH-9"),
        (_S.HINT_USED, _E.TOUCH): Race("hint-reuse", "BH-9"),
        (_S.HINT_USED, _E.ALLOCATE): Race("hint-reuse", "BH-9"),
        (_S.HINT_OVER, _E.TOUCH): Race("hint-reuse", "BH-8"),
        (_S.HINT_OVER, _E.ALLOCATE): Race("hint-reuse", "BH-8"),
        # The text lets the driver do it, and the device cannot see it: what is written then is lost.
        (_S.HINTED, _E.FREE): Race("hint-released-early", "BH-14"),
        # A page lent twice, or lent although it is used.
        (_S.IN_FLIGHT, _E.REPORT): Race("double-report", "mm/page_reporting.c: page_reporting_cycle"),
        (_S.ACKNOWLEDGED, _E.REPORT): Race("double-report", "mm/page_reporting.c: page_reporting_cycle"),
        (_S.FREE, _E.REPORT): Race("report-not-isolated", "BR-3"),
        (_S.IN_USE, _E.REPORT): Race("report-in-use", "BR-3"),
        (_S.INFLATING, _E.REPORT): Race("report-of-ballooned", "BI-9"),
        (_S.BALLOONED, _E.REPORT): Race("report-of-ballooned", "BI-6"),
        (_S.DEFLATING, _E.REPORT): Race("report-of-ballooned", "BI-7"),
        (_S.KEPT, _E.REPORT): Race("report-of-ballooned", "BI-6"),
        (_S.IN_FLIGHT, _E.ISOLATE): Race("double-report", "mm/page_reporting.c: page_reporting_cycle"),
        **{(state, _E.REPORT): Race("report-of-hinted", "BR-3") for state in (_S.HINTED, _S.HINT_USED, _S.HINT_OVER)},
        (_S.HINTED, _E.HINT): Race("double-hint", "BH-4"),
        (_S.HINT_USED, _E.HINT): Race("double-hint", "BH-4"),
        (_S.HINT_OVER, _E.HINT): Race("hint-after-release", "BH-5"),
        (_S.FREE, _E.HINT): Race("hint-after-release", "BH-5"),
        (_S.IN_USE, _E.HINT): Race("hint-after-release", "BH-4"),
        **{(state, _E.HINT): Race("hint-of-lent", "BH-4") for state in _LENT},
        (_S.FREE, _E.INFLATE): Race("inflate-not-allocated", "BI-9"),
        (_S.IN_USE, _E.INFLATE): Race("inflate-in-use", "BI-9"),
        # A discard of what the device does not have. The ledger names the rule by how it had it last.
        (_S.IN_USE, _E.DISCARD): Race("discard-in-use", "M-safe"),
        (_S.FREE, _E.DISCARD): Race("late-discard", "M-safe"),
        (_S.ACKNOWLEDGED, _E.DISCARD): Race("late-discard", "M-safe"),
        (_S.DEFLATED, _E.DISCARD): Race("late-discard", "M-safe"),
        (_S.KEPT, _E.DISCARD): Race("late-discard", "M-safe"),
        (_S.ISOLATED, _E.DISCARD): Race("late-discard", "M-safe"),
        (_S.BALLOONED, _E.DISCARD): Race("late-discard", "BI-13"),
        (_S.DEFLATING, _E.DISCARD): Race("late-discard", "BI-13"),
        (_S.HINT_OVER, _E.DISCARD): Race("discard-after-done", "BH-15"),
        # An acknowledgement of what was not asked.
        (_S.FREE, _E.ACKNOWLEDGE): Race("double-acknowledgement", _GET_BUF),
        (_S.IN_USE, _E.ACKNOWLEDGE): Race("double-acknowledgement", _GET_BUF),
        (_S.ACKNOWLEDGED, _E.ACKNOWLEDGE): Race("double-acknowledgement", _GET_BUF),
        (_S.DEFLATED, _E.ACKNOWLEDGE): Race("double-acknowledgement", _GET_BUF),
        (_S.BALLOONED, _E.ACKNOWLEDGE): Race("double-acknowledgement", _GET_BUF),
        (_S.HINT_USED, _E.ACKNOWLEDGE): Race("double-acknowledgement", _GET_BUF),
        # The allocator.
        (_S.FREE, _E.TOUCH): Race("touch-after-free", "mm/page_alloc.c: __free_one_page"),
        (_S.ISOLATED, _E.TOUCH): Race("touch-isolated", "mm/page_alloc.c: __isolate_free_page"),
        (_S.ISOLATED, _E.ALLOCATE): Race("allocate-isolated", "mm/page_alloc.c: __isolate_free_page"),
        (_S.ACKNOWLEDGED, _E.TOUCH): Race("touch-isolated", "mm/page_alloc.c: __isolate_free_page"),
        (_S.ACKNOWLEDGED, _E.ALLOCATE): Race("allocate-isolated", "mm/page_alloc.c: __isolate_free_page"),
        (_S.DEFLATED, _E.TOUCH): Race("touch-isolated", "mm/page_alloc.c: __free_one_page"),
        (_S.DEFLATED, _E.ALLOCATE): Race("allocate-isolated", "mm/page_alloc.c: __free_one_page"),
        (_S.IN_USE, _E.ALLOCATE): Race("allocate-in-use", "mm/page_alloc.c: get_page_from_freelist"),
        (_S.IN_USE, _E.ISOLATE): Race("isolate-in-use", "mm/page_alloc.c: __isolate_free_page"),
        (_S.FREE, _E.FREE): Race("double-free", "mm/page_alloc.c: __free_one_page"),
    }
)
"""The races that have a name. Any other pair that is not allowed is called ``out-of-order``."""

OUT_OF_ORDER: Final = "out-of-order"
STALE_FLAG: Final = Race("stale-reported-flag", "mm/page_alloc.c: del_page_from_free_list")
"""A free block is marked as reported although some of its pages were not, or were used since."""
DOUBLE_REPORT: Final = Race("double-report", "mm/page_reporting.c: page_reporting_cycle")
"""A block that is marked as reported is isolated for another report."""
