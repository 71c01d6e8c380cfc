"""Which cases exercise each clause, edge case and entry of another suite, or why none does, as lines."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from scripts.check.clauses.clause import Clause
from scripts.check.edges.edge import Edge, Peer
from scripts.check.suite import Suite


def coverage_lines(
    suites: Iterable[Suite[Any]],
    edges: Mapping[int, Edge],
    peers: Sequence[Peer],
    clauses: Mapping[str, Clause],
    unseen: Mapping[str, str],
) -> Iterator[str]:
    """Yield for each entry of the lists what it says, and the cases by their suite or the reason."""
    cases = [(f"{suite.name} {case.name}", case) for suite in suites for case in suite]
    yield "clauses:"
    for clause in clauses.values():
        found = [name for name, case in cases if clause.id in case.clauses]
        yield from _entry(clause.id, clause.statement, found, unseen.get(clause.id, ""))
    yield "edge cases:"
    for edge in edges.values():
        found = [name for name, case in cases if edge.number in case.edges]
        yield from _entry(str(edge.number), edge.statement, found, edge.not_applicable)
    yield "other suites and public reports:"
    for peer in peers:
        found = [name for name, case in cases if not set(peer.names).isdisjoint(case.peers)]
        yield from _entry(", ".join(peer.names), peer.statement, found, peer.not_applicable)


def _entry(name: str, statement: str, cases: Sequence[str], reason: str) -> Iterator[str]:
    yield f"{name}: {statement}"
    yield "    " + (", ".join(cases) or f"no case: {reason}")
