"""What every form of a report has in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scripts.check.report.clause_verdicts import ClauseVerdict
from scripts.check.verdict import Result, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole run: what was judged, by which cases, and what that says about each clause."""

    target: str
    results: Sequence[Result]
    clauses: Sequence[ClauseVerdict]
    seconds: float

    def count(self, verdict: Verdict) -> int:
        """Return the number of cases with ``verdict``."""
        return sum(one.verdict is verdict for one in self.results)

    @property
    def failed(self) -> bool:
        """Whether a case failed."""
        return self.count(Verdict.FAIL) > 0


class Reporter(Protocol):
    """A form of a report. ``begin`` comes once, ``result`` after each case, ``end`` once."""

    def begin(self, target: str, cases: int) -> None:
        """Say what is to come: the target in a few words, and the number of cases."""

    def result(self, result: Result) -> None:
        """Take the outcome of a case."""

    def end(self, summary: Summary) -> None:
        """Take the whole."""
