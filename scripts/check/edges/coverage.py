"""What no case covers, and what cases name that is on no list."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.check.clauses.clause import Bound, Clause
from scripts.check.edges.edge import Edge, Peer
from scripts.check.suite import Case, Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What is left: edge cases, entries of other suites and clauses that no case covers and no reason excuses.

    ``idle`` is what a case does cover although a reason says that none can; ``unknown`` is what a case names and no
    list has, as ``(case, name)``.
    """

    edges: tuple[Edge, ...]
    peers: tuple[Peer, ...]
    clauses: tuple[Clause, ...]
    idle: tuple[Edge | Peer | Clause, ...]
    unknown: tuple[tuple[str, str], ...]


def coverage(
    suites: Iterable[Suite[Any]],
    edges: Mapping[int, Edge],
    peers: Sequence[Peer],
    clauses: Mapping[str, Clause],
    unseen: Mapping[str, str],
    bound: Iterable[Bound] = Bound,
) -> Coverage:
    """Return what the cases of ``suites`` leave of the lists, of the clauses those that bind one of ``bound``.

    ``unseen`` has the reasons why no case exercises a clause, by the clause's id.
    """
    who = frozenset(bound)
    cases = [case for suite in suites for case in suite]
    numbers = {number for case in cases for number in case.edges}
    names = {name for case in cases for name in case.peers}
    ids = {id_ for case in cases for id_ in case.clauses}
    covered: list[Edge | Peer] = [edge for edge in edges.values() if edge.number in numbers]
    covered += [peer for peer in peers if not names.isdisjoint(peer.names)]
    return Coverage(
        edges=tuple(edge for edge in edges.values() if edge.number not in numbers and not edge.not_applicable),
        peers=tuple(peer for peer in peers if names.isdisjoint(peer.names) and not peer.not_applicable),
        clauses=tuple(
            clause for clause in clauses.values() if clause.bound & who and clause.id not in ids | unseen.keys()
        ),
        idle=(
            *(one for one in covered if one.not_applicable),
            *(clause for clause in clauses.values() if clause.id in ids & unseen.keys()),
        ),
        unknown=tuple(_unknown(cases, edges, peers, clauses)),
    )


def _unknown(
    cases: Iterable[Case[Any]], edges: Mapping[int, Edge], peers: Iterable[Peer], clauses: Mapping[str, Clause]
) -> Iterable[tuple[str, str]]:
    known = {name for peer in peers for name in peer.names}
    for case in cases:
        yield from ((case.name, f"edge case {number}") for number in case.edges if number not in edges)
        yield from ((case.name, name) for name in case.peers if name not in known)
        yield from ((case.name, id_) for id_ in case.clauses if id_ not in clauses)
