"""Why the host still backs a page that the guest has free: the causes of a ledger (``guest.ledger``)."""

from enum import StrEnum


class Cause(StrEnum):
    """What holds a free page on its way back to the host. One page has one cause, the first that holds it now."""

    BELOW_ORDER = "below_order"
    """Its block is smaller than the reporting order."""
    WATERMARK = "watermark"
    """The zone is too short of memory: the reporter may not take a block away from it."""
    HIGH_RESIDUE = "high_residue"
    """Too few blocks for a request: fewer than the high-water mark of the reporters of 2019."""
    DELAY = "delay"
    """A pass is requested and has not begun."""
    BUDGET = "budget"
    """The last pass has spent its budget for the list (``rotation``)."""
    PCP = "pcp"
    """It is on a per-CPU list."""
    POISON = "poison"
    """Free pages hold a pattern that the device does not know, or that a discard would not keep."""
    INHIBITED = "inhibited"
    """Nothing is reported: the guest lacks a reporter or a device that takes reports, or the pageblock is ISOLATE."""
    REFUSED = "refused"
    """The device has kept it: the report failed, or was acknowledged without a discard."""
    UNACKNOWLEDGED = "unacknowledged"
    """It is in a report that the device has not answered, or next in a pass that waits for that answer."""
    UNKNOWN = "unknown"
    """A real kernel does not show it."""
