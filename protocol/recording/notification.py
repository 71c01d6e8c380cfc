"""Whether a call is due, worked out again from what a recording has of it."""

from protocol.packed_ring import WRAP_COUNTER, wants_notification
from protocol.split_ring import VIRTQ_AVAIL_F_NO_INTERRUPT
from protocol.virtio_ring import needs_event


def is_call_due(*, packed: bool, event_idx: bool, size: int, old: int, new: int, event: int, flags: int) -> bool:
    """Return whether a driver wants a call for the used position's move from ``old`` to ``new``.

    ``event`` is its used_event, or its event word in a packed ring, ``flags`` those of its available ring; each is
    looked at only where the format and EVENT_IDX say so.
    """
    if old == new:
        return False
    if packed:
        moved = (_unwrapped(new, size) - _unwrapped(old, size)) % (2 * size)
        return wants_notification(event, new, moved, size, event_idx=event_idx)
    if event_idx:
        return needs_event(event, new, old)
    return not flags & VIRTQ_AVAIL_F_NO_INTERRUPT


def _unwrapped(position: int, size: int) -> int:
    return position - WRAP_COUNTER if position & WRAP_COUNTER else position + size
