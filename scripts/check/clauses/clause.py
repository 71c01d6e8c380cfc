"""A numbered statement of a specification: who is bound by it, how strictly, and where it stands."""

from dataclasses import dataclass
from enum import Enum


class Bound(Enum):
    """Who is bound by a clause."""

    DEVICE = "device"
    DRIVER = "driver"
    FRONT_END = "front-end"
    BACK_END = "back-end"


class Level(Enum):
    """How strictly a clause binds."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    MAY = "MAY"
    UNSTATED = "not stated"
    """The text says nothing, implementations differ, and a driver's author has to know what the other side does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One statement, in our words.

    ``id`` is ours and stable. ``bound`` are those who have to keep it, ``section`` is where it stands, such as
    ``virtio 1.2, 2.7.8.2`` or ``vhost-user, "Ring states"``.
    """

    id: str
    bound: frozenset[Bound]
    level: Level
    statement: str
    section: str


DEVICE = frozenset({Bound.DEVICE})
DRIVER = frozenset({Bound.DRIVER})
BOTH = DEVICE | DRIVER
FRONT_END = frozenset({Bound.FRONT_END})
BACK_END = frozenset({Bound.BACK_END})

Row = tuple[str, frozenset[Bound], Level, str]
"""A clause without its section: id, who is bound, how strictly, and the statement."""


def section(name: str, *rows: Row) -> tuple[Clause, ...]:
    """Return the clauses of one section."""
    return tuple(
        Clause(id=id_, bound=bound, level=level, statement=statement, section=name)
        for id_, bound, level, statement in rows
    )
