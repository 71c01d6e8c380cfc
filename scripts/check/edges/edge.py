"""A numbered edge case, and an entry of another suite or a public report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """An edge case of the protocol. ``statement`` says what happens, and what is right then.

    ``not_applicable`` is the reason why no case exercises it, empty where a case has to.
    """

    number: int
    statement: str
    not_applicable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What the suite of another implementation tries, or what went wrong for somebody in public.

    ``names`` are the ids by which cases name it, such as ``tp-qemu/balloon_check``: a report that several places tell
    of has several, and a case that names one of them covers it. ``not_applicable`` is as with :class:`Edge`.
    """

    names: tuple[str, ...]
    statement: str
    not_applicable: str = ""


EdgeRow = tuple[int, str]
PeerRow = tuple[str, str]
"""Names, separated by a comma and a space, and the statement."""


def edges(*rows: EdgeRow, not_applicable: str = "") -> tuple[Edge, ...]:
    """Return edge cases that share the reason why none of them applies, if there is one."""
    return tuple(Edge(number=number, statement=statement, not_applicable=not_applicable) for number, statement in rows)


def peers(prefix: str, *rows: PeerRow, not_applicable: str = "") -> tuple[Peer, ...]:
    """Return entries of the suite whose names begin with ``prefix``, for one reason not applicable if there is one."""
    return tuple(
        Peer(
            names=tuple(prefix + name for name in names.split(", ")),
            statement=statement,
            not_applicable=not_applicable,
        )
        for names, statement in rows
    )
