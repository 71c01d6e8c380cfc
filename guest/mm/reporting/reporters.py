"""The reporters by name, and their constants' defaults."""

from typing import Any, Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.page_reporting import PageReporter
from guest.mm.reporting.reported_boundary import ReportedBoundary
from guest.mm.reporting.rotation import Rotation
from guest.mm.reporting.scan import Scan
from guest.mm.reporting.zone_reporting import ZoneReporter
from protocol.errors import UsageError

REPORTERS: Final[dict[str, type[PageReporter]]] = {kind.name: kind for kind in (ReportedBoundary, Rotation, Scan)}


def make_reporter(
    name: str,
    allocator: PageAllocator,
    *,
    order: int | None = None,
    delay: float | None = None,
    capacity: int | None = None,
    high_water_mark: int | None = None,
    keeps_order: bool = True,
) -> PageReporter:
    """Return an unregistered reporter for ``allocator``. None leaves a value at that reporter's own default.

    Args:
        name: ``boundary``, ``rotation`` or ``scan``.
        order: least order that is reported.
        delay: seconds from a request to the work.
        capacity: blocks in one report.
        high_water_mark: unreported blocks of one order that start ``boundary`` and ``scan``; ``rotation`` has none.
        keeps_order: for ``rotation``, whether its order stays through further registrations; the others settle it once.

    Raises:
        UsageError: an unknown name, or an invalid value for that reporter.
    """
    if name not in REPORTERS:
        raise UsageError(f"no page reporter is called {name!r} (there are {', '.join(REPORTERS)})")
    given: dict[str, Any] = {"order": order, "delay": delay, "capacity": capacity}
    if high_water_mark is not None:
        if not issubclass(REPORTERS[name], ZoneReporter):
            raise UsageError(f"the {name} reporter has no high-water mark")
        given["high_water_mark"] = high_water_mark
    if issubclass(REPORTERS[name], Rotation):
        given["keeps_order"] = keeps_order
    return REPORTERS[name](allocator, **{key: value for key, value in given.items() if value is not None})
