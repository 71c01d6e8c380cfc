"""Cases by name, and the clauses and edge cases that each exercises."""

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from protocol.errors import UsageError
from scripts.check.clauses.table import CLAUSES
from scripts.check.clauses.unseen import UNSEEN

Target = TypeVar("Target")
"""What a case is given: a fresh connection to, or machine with, the target."""

CaseFunction = Callable[[Target], None]

_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(/(split|packed))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(Generic[Target]):
    """One trial of the target.

    ``run`` returns for a PASS and raises an :class:`~scripts.check.verdict.Outcome` otherwise. ``clauses`` are ids of
    the clause table, ``edges`` numbers of the list of edge cases, ``peers`` names of cases in the suites of other
    implementations and of public reports that this one covers. A ``quick`` case belongs to the quick run as well.
    """

    name: str
    says: str
    clauses: tuple[str, ...]
    edges: tuple[int, ...]
    peers: tuple[str, ...]
    quick: bool
    run: CaseFunction[Target]


class Suite(Generic[Target]):
    """Cases for one kind of target, in the order in which they run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._cases: dict[str, Case[Target]] = {}

    def case(
        self,
        name: str,
        *,
        clauses: Sequence[str] = (),
        edges: Sequence[int] = (),
        peers: Sequence[str] = (),
        quick: bool = True,
    ) -> Callable[[CaseFunction[Target]], CaseFunction[Target]]:
        """Return a decorator that adds a function as the case ``name``. Its docstring's first line says what is right.

        The name is made of lower case words joined by dashes and does not occur twice. A case that is tried with both
        ring formats has two, ``name/split`` and ``name/packed``.
        """
        assert _NAME.fullmatch(name), name
        assert name not in self._cases, name

        def add(run: CaseFunction[Target]) -> CaseFunction[Target]:
            assert run.__doc__, name
            says = run.__doc__.strip().splitlines()[0]
            self._cases[name] = Case(
                name=name,
                says=says,
                clauses=tuple(clauses),
                edges=tuple(edges),
                peers=tuple(peers),
                quick=quick,
                run=self.with_look(run),
            )
            return run

        return add

    def with_look(self, run: CaseFunction[Target]) -> CaseFunction[Target]:
        """Return what a case runs: ``run`` itself. A suite that looks at its target after each case adds that here."""
        return run

    def __iter__(self) -> Iterator[Case[Target]]:
        return iter(self._cases.values())

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, name: str) -> Case[Target]:
        return self._cases[name]

    def chosen(self, patterns: Sequence[str], *, quick: bool = False) -> list[Case[Target]]:
        """Return the cases that one of ``patterns`` means, all without a pattern; of these the quick ones if asked.

        A pattern is a case's name, with or without the ring format, or a clause's id, with ``*`` and ``?`` as in a
        shell; ids compare without case.

        Raises:
            UsageError: a pattern means none of the cases. It says why, where it is a clause's id.
        """
        chosen: dict[str, Case[Target]] = {}
        for pattern in patterns:
            meant = [case for case in self if _means(pattern, case)]
            if not meant:
                raise UsageError(_why_none(pattern))
            chosen |= {case.name: case for case in meant}
        return [case for case in self if (not patterns or case.name in chosen) and (case.quick or not quick)]


def _why_none(pattern: str) -> str:
    clause = CLAUSES.get(pattern.upper()) or CLAUSES.get(pattern)
    if clause is None:
        return f"no case or clause is called {pattern!r} (see --list)"
    if reason := UNSEEN.get(clause.id):
        return f"no case exercises {clause.id}: {reason}"
    bound = " and the ".join(sorted(bound.value for bound in clause.bound))
    return f"no case here exercises {clause.id}, which binds the {bound} (balloon-check device --coverage)"


def _means(pattern: str, case: Case[Target]) -> bool:
    ids = (clause.lower() for clause in case.clauses)
    names = (case.name, case.name.partition("/")[0])
    return any(fnmatch.fnmatchcase(name, pattern) for name in names) or any(
        fnmatch.fnmatchcase(one, pattern.lower()) for one in ids
    )
