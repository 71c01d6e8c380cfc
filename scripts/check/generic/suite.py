"""The suite of the generic cases: each also looks whether the back-end survived it."""

import functools
from typing import Final

from protocol.errors import BalloonError
from scripts.check.generic.target import Target
from scripts.check.suite import CaseFunction, Suite
from scripts.check.verdict import SURVIVES, Failed, Outcome


class GenericSuite(Suite[Target]):
    """Cases that end with a look whether a program of ours was ended by a signal."""

    def with_look(self, run: CaseFunction[Target]) -> CaseFunction[Target]:
        """Return ``run`` with that look."""
        return _surviving(run)


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
