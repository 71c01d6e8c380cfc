"""The suite of the generic cases: each also looks whether the back-end survived it."""

import functools
from collections.abc import Callable, Sequence
from typing import Final

from protocol.errors import BalloonError
from scripts.check.generic.target import Target
from scripts.check.suite import CaseFunction, Suite
from scripts.check.verdict import SURVIVES, Failed, Outcome


class GenericSuite(Suite[Target]):
    """Cases that end with a look whether a program of ours was ended by a signal."""

    def case(
        self,
        name: str,
        *,
        clauses: Sequence[str] = (),
        edges: Sequence[int] = (),
        peers: Sequence[str] = (),
        quick: bool = True,
    ) -> Callable[[CaseFunction[Target]], CaseFunction[Target]]:
        """Return a decorator as :meth:`Suite.case` does."""
        add = super().case(name, clauses=clauses, edges=edges, peers=peers, quick=quick)

        def wrap(run: CaseFunction[Target]) -> CaseFunction[Target]:
            return add(_surviving(run))

        return wrap


def _surviving(run: CaseFunction[Target]) -> CaseFunction[Target]:
    @functools.wraps(run)
    def run_and_look(target: Target) -> None:
        try:
            run(target)
        except (Outcome, BalloonError) as outcome:
            try:
                target.backend.check_survival(target)
            except Failed as crash:
                raise Failed(f"{crash.reason} ({outcome})", SURVIVES) from outcome
            raise
        target.backend.check_survival(target)

    return run_and_look


SUITE: Final = GenericSuite("generic")
