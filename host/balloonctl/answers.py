"""What the answers of a daemon consist of, as far as ``balloonctl`` uses them.

An upgrade leaves a daemon of an older version running, and a path may lead to the socket of another program: an answer
of another shape is one line that says what is wrong with it. Members that are not named here may be there too.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from protocol.errors import BalloonError

NUMBER_MOST: Final = 1 << 100
"""Numbers are below that. The sums of a hostile guest's reports may exceed 64 bits."""


class Fields(NamedTuple):
    """An object with these members."""

    members: Mapping[str, "Shape"]


class Values(NamedTuple):
    """An object whose members, of any name, are all of one shape."""

    each: "Shape"


class Items(NamedTuple):
    """An array."""

    each: "Shape"


class Maybe(NamedTuple):
    """Null, or a value of this shape."""

    shape: "Shape"


class Kind(NamedTuple):
    """A value of one of these types."""

    name: str
    types: tuple[type, ...]


Shape = Fields | Values | Items | Maybe | Kind

TEXT: Final = Kind("a string", (str,))
FLAG: Final = Kind("true or false", (bool,))
WHOLE: Final = Kind("an integer", (int,))
NUMBER: Final = Kind("a number", (int, float))
ANY_OBJECT: Final = Kind("an object", (dict,))

_LATENCY: Final = Fields({"counts": Items(WHOLE), "seconds": NUMBER})
_INHIBITED: Final = Maybe(Fields({"by": TEXT, "why": TEXT}))
_QUEUE: Final = Fields({"state": TEXT, "set-up": FLAG, "why": Maybe(TEXT), "running-for": Maybe(NUMBER)})

MACHINE: Final = Fields(
    {
        "vm": WHOLE,
        "pid": WHOLE,
        "name": TEXT,
        "age": NUMBER,
        "memory": WHOLE,
        "page-size": WHOLE,
        "host-backed": Maybe(WHOLE),
        "guest-memory": WHOLE,
        "balloon-actual": WHOLE,
        "offered": Items(TEXT),
        "features": Items(TEXT),
        "driver-ready": FLAG,
        "ring": Maybe(TEXT),
        "queues": Values(_QUEUE),
        "status": Maybe(Items(TEXT)),
        "front-end": Maybe(TEXT),
        "keeps-pages": Maybe(TEXT),
        "inhibited": _INHIBITED,
        "discard-error": Maybe(TEXT),
        "statistics": Values(WHOLE),
        "statistics-unanswered": NUMBER,
        "reports": WHOLE,
        "reported-bytes": WHOLE,
        "mean-range": WHOLE,
        "discarded-bytes": WHOLE,
        "refused-bytes": Values(WHOLE),
        "last-report": Maybe(NUMBER),
        "acknowledge": _LATENCY,
        "discard": _LATENCY,
        "health": Items(TEXT),
    }
)
"""One machine in the answer to ``query-vms``."""

BROKEN: Final = Fields({"vm": WHOLE, "broken": TEXT})
"""One of which a worker has never told anything. Of others there is what it told last."""

RECLAIMED: Final = Fields(
    {
        "offered-bytes": WHOLE,
        "discarded-bytes": WHOLE,
        "seconds": NUMBER,
        "complete": FLAG,
        "stopped-by": Maybe(TEXT),
    }
)
ALLOWED: Final = Fields({"inhibited": _INHIBITED})
STATISTICS: Final = Fields({"statistics": Values(WHOLE)})
EVENT: Final = Fields({"event": TEXT, "data": ANY_OBJECT, "timestamp": Fields({"seconds": WHOLE})})


def check_answer(answer: Any, shape: Shape, place: str) -> Any:
    """Return ``answer``. Raises :class:`BalloonError` if it has another shape; the message begins with ``place``."""
    if (mismatch := _mismatch(answer, shape)) is not None:
        raise BalloonError(f"{place}: not an answer of vhost-user-balloon in this version: {mismatch}")
    return answer


def machines_of(answer: Any, place: str) -> list[dict[str, Any]]:
    """Return the answer to ``query-vms``, checked. Raises like :func:`check_answer`."""
    entries: list[dict[str, Any]] = check_answer(answer, Items(ANY_OBJECT), place)
    for entry in entries:
        check_answer(entry, MACHINE if "name" in entry or "broken" not in entry else BROKEN, place)
    return entries


def _mismatch(value: object, shape: Shape, name: str = "it") -> str | None:
    # What is wrong with a value that is called `name`, None if nothing is.
    match shape:
        case Kind():
            return None if _is(value, shape) else f"{name} is not {shape.name}"
        case Maybe():
            return None if value is None else _mismatch(value, shape.shape, name)
        case Items():
            if not isinstance(value, list):
                return f"{name} is not an array"
            return next((found for each in value if (found := _mismatch(each, shape.each, f"an item of {name}"))), None)
        case Values():
            if not isinstance(value, dict):
                return f"{name} is not an object"
            return next((found for key in value if (found := _mismatch(value[key], shape.each, f"{key!a}"))), None)
        case Fields():
            if not isinstance(value, dict):
                return f"{name} is not an object"
            for key, inner in shape.members.items():
                if key not in value:
                    return f"'{key}' is missing"
                if (found := _mismatch(value[key], inner, f"'{key}'")) is not None:
                    return found
            return None


def _is(value: object, kind: Kind) -> bool:
    if type(value) not in kind.types:
        return False
    return not isinstance(value, int | float) or -NUMBER_MOST < value < NUMBER_MOST  # not NaN either
