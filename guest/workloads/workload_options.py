"""Workloads by name: ``NAME[:key=value,...]`` on a command line, for example ``memhog:size=512M,hold=2``."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from guest.mm.pageblock import MAX_ORDER, PAGEBLOCK_ORDER
from guest.workloads.build import Build
from guest.workloads.churn import Churn
from guest.workloads.memhog import Idle, Memhog
from guest.workloads.page_fault import PageFault
from guest.workloads.pagecache import PageCacheUser
from guest.workloads.trace_file import TRACE, load_trace
from guest.workloads.workload import Workload
from protocol.errors import UsageError
from protocol.units import parse_size

_LONGEST: Final = 1e9
_SHORTEST: Final = 1e-6
"""Limits of seconds: at most thirty years, at least the resolution of a clock."""


def _seconds(text: str) -> float:
    # "not (>= 0)" and not "< 0": a NaN is refused as well.
    seconds = float(text)
    if not 0 <= seconds <= _LONGEST:
        raise UsageError("out of range")
    return seconds


def _positive_seconds(text: str) -> float:
    seconds = _seconds(text)
    if seconds < _SHORTEST:
        raise UsageError("out of range")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 1_000_000_000:
        raise UsageError("out of range")
    return count


def _tasks(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 1024:
        raise UsageError("not from 1 to 1024")
    return count


def _order(text: str) -> int:
    order = int(text)
    if not 0 <= order <= MAX_ORDER:
        raise UsageError(f"not from 0 to {MAX_ORDER}")
    return order


def _percent(text: str) -> float:
    percent = float(text)
    if not 0 <= percent <= 100:
        raise UsageError("not from 0 to 100")
    return percent


def _region(text: str) -> int:
    size = parse_size(text)
    if size == 0:
        raise UsageError("out of range")
    return size


_Options = dict[str, Callable[[str], int | float]]

_PAGE_FAULT: Final[_Options] = {"size": _region, "tasks": _tasks, "repeat": _count, "rate": parse_size}

_KINDS: Final[dict[str, tuple[Callable[..., Workload], _Options]]] = {
    "idle": (Idle, {"seconds": _seconds}),
    "memhog": (
        Memhog,
        {"size": parse_size, "order": _order, "hold": _seconds, "rest": _seconds, "rate": parse_size, "repeat": _count},
    ),
    "churn": (
        Churn,
        {"size": parse_size, "seconds": _seconds, "lifetime": _positive_seconds, "tick": _positive_seconds},
    ),
    "page_fault1": (partial(PageFault, order=PAGEBLOCK_ORDER), _PAGE_FAULT),
    "page_fault2": (partial(PageFault, order=0), _PAGE_FAULT),
    "pagecache": (
        PageCacheUser,
        {
            "size": parse_size,
            "hold": _seconds,
            "rest": _seconds,
            "rate": parse_size,
            "drop": _percent,
            "repeat": _count,
        },
    ),
    "build": (
        Build,
        {"size": parse_size, "seconds": _positive_seconds, "jobs": _tasks, "steps": _count, "tick": _positive_seconds},
    ),
}
WORKLOAD_NAMES: Final = (*_KINDS, TRACE)

WORKLOAD_HELP: Final = """\
workloads (repeatable; several run at the same time; sizes in bytes or as 512M, times in seconds, 0 for a rate: none):
  idle[:seconds=0]                                       do nothing (0: to the end)
  memhog[:size=0,order=9,hold=1,rest=0,rate=0,repeat=1]  fill memory, hold it, free it (size 0: 90 % of what is free)
  churn[:size=0,seconds=10,lifetime=1,tick=0.01]         random sizes and lifetimes around size (0: half of the free)
  page_fault1[:size=128M,tasks=1,repeat=10,rate=0]       each task takes size in blocks of 2 MiB, touches and frees it
  page_fault2[:size=128M,tasks=1,repeat=10,rate=0]       the same page by page
  pagecache[:size=0,hold=1,rest=0,rate=0,drop=100,repeat=1]
                                                         read files until size is cached (0: 80 % of the free), drop
                                                         this share of them
  build[:size=0,seconds=60,jobs=4,steps=4,tick=0.05]     compile and link, a staircase up to size (0: half of the free)
  trace:FILE                                             replay what --record FILE has written
"""


def parse_workload(text: str) -> Workload:
    """Return the workload that ``NAME[:key=value,...]`` or ``trace:FILE`` means; that FILE is read here.

    Raises:
        UsageError: an unknown name or key, an invalid value, a malformed trace.
        BalloonError: the trace cannot be read.
    """
    name, _, rest = text.partition(":")
    if name == TRACE:
        return load_trace(rest)
    if name not in _KINDS:
        raise UsageError(f"unknown workload {name!r}, known are {', '.join(WORKLOAD_NAMES)}")
    kind, options = _KINDS[name]
    values: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        if not equals or key not in options:
            close = [] if key in options else difflib.get_close_matches(key, options, 1)
            near = f", did you mean {close[0]}?" if close else ","
            raise UsageError(f"workload {name}: unknown option {item!r}{near} known are {', '.join(options)}")
        if key in values:
            raise UsageError(f"workload {name}: {key} is given twice")
        values[key] = _parse_value(f"workload {name}: {key}={value}", options[key], value)
    return kind(**values)


def _parse_value(what: str, parse: Callable[[str], int | float], value: str) -> int | float:
    try:
        return parse(value)
    except ValueError as error:
        raise UsageError(f"{what} is not a number") from error
    except UsageError as error:
        raise UsageError(f"{what} is {error}") from error
