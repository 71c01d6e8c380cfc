"""What a diagnosis consists of: causes, each with one sentence and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """Why memory does not come back. The values are words of the control socket and of the metrics, and stay."""

    NOT_SERVED = "not-served"
    FRONT_END_STUCK = "front-end-stuck"
    GUEST_SILENT = "guest-silent"
    NOT_OFFERED = "not-offered"
    NO_DRIVER = "no-driver"
    NOT_NEGOTIATED = "not-negotiated"
    PROBE_FAILED = "probe-failed"
    QUEUE_NOT_SET_UP = "queue-not-set-up"
    QUEUE_WAITS = "queue-waits"
    RING_BROKEN = "ring-broken"
    INHIBITED = "inhibited"
    DISCARD_OFF = "discard-off"
    POISON = "poison"
    CANNOT_PUNCH = "cannot-punch"
    PRIVATE_MEMORY = "private-memory"
    HUGE_PAGES = "huge-pages"
    ALL_REFUSED = "all-refused"
    PARTLY_REFUSED = "partly-refused"
    NEVER_KICKED = "never-kicked"
    ORDER_TOO_LARGE = "order-too-large"
    PAGE_CACHE = "page-cache"
    GUEST_BUSY = "guest-busy"


NOTES: Final = frozenset({Cause.PARTLY_REFUSED, Cause.PAGE_CACHE, Cause.GUEST_BUSY})
"""Causes that explain where memory is, in a machine that works as it should."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause: ``sentence`` says what is the matter, ``remedy`` what to do."""

    cause: Cause
    sentence: str
    remedy: str

    def remedy_for(self, label: str) -> str:
        """The remedy, with what the operator calls the guest in the place of VM."""
        return self.remedy.replace(" VM", f" {label}")

    @property
    def is_fault(self) -> bool:
        """Whether something has to be mended, and not only explained."""
        return self.cause not in NOTES
