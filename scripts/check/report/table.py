"""The report for people: a line a case as it ends, then the clauses that were not simply kept."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Final

from scripts.check.report.clause_verdicts import ClauseVerdict
from scripts.check.report.reporter import Summary
from scripts.check.verdict import Result, Verdict
from scripts.check.words import counted

COLOURS: Final = {Verdict.PASS: "32", Verdict.FAIL: "1;31", Verdict.FINDING: "33", Verdict.NOT_EXERCISED: "2"}

WIDTH_MIN: Final = 50
_VERDICT: Final = max(len(verdict.value) for verdict in Verdict) + 1
_INDENT: Final = " " * 4


class TableReport:
    """Writes lines with ``write``, at most ``width`` columns wide. PASS lines are left out unless ``verbose``."""

    def __init__(self, write: Callable[[str], None], *, width: int, colours: bool, verbose: bool) -> None:
        self._write = write
        self._width = max(width, WIDTH_MIN)
        self._colours = colours
        self._verbose = verbose
        self._cases = 0
        self._done = 0

    def begin(self, target: str, cases: int) -> None:
        """Write what is judged."""
        self._cases = cases
        self._write(f"judging {target}: {counted(cases, 'case')}")

    def result(self, result: Result) -> None:
        """Write a line for the case, and its reason below it."""
        self._done += 1
        if result.verdict is Verdict.PASS and not self._verbose:
            return
        self._write(f"{self._painted(result.verdict)} {result.case}")
        if result.reason:
            about = f" [{', '.join(result.broken)}]" if result.broken else ""
            self._paragraph(result.reason + about)

    def end(self, summary: Summary) -> None:
        """Write the clauses that were broken or found something about, what was not exercised, and the sum."""
        if told := [one for one in summary.clauses if one.verdict in (Verdict.FAIL, Verdict.FINDING)]:
            self._write("")
            self._write("clauses:")
            for one in told:
                self._clause(one)
        for verdict in (Verdict.PASS, Verdict.NOT_EXERCISED):
            if those := [one for one in summary.clauses if one.verdict is verdict]:
                why = " (-v says why)" if verdict is Verdict.NOT_EXERCISED and not self._verbose else ""
                self._write(f"{self._painted(verdict)} {counted(len(those), 'clause')}{why}")
                self._clauses(those)
        self._write("")
        counts = ", ".join(f"{summary.count(verdict)} {verdict.value}" for verdict in Verdict)
        exercised = sum(one.verdict is not Verdict.NOT_EXERCISED for one in summary.clauses)
        coverage = f"{exercised} of {len(summary.clauses)} clauses exercised"
        self._write(f"{summary.target}: {counts}; {coverage}; {summary.seconds:.1f} s")

    def _clauses(self, those: Sequence[ClauseVerdict]) -> None:
        reasons: dict[str, list[str]] = {}
        for one in those:
            reasons.setdefault(one.reason if self._verbose else "", []).append(one.clause.id)
        for reason, ids in reasons.items():
            self._paragraph(", ".join(ids) + f": {reason}" * bool(reason))

    def _clause(self, one: ClauseVerdict) -> None:
        clause = one.clause
        place = "; ".join(dict.fromkeys([clause.level.value, clause.section]))
        fits = _VERDICT + len(f" {clause.id} ({place})") <= self._width
        self._write(f"{self._painted(one.verdict)} {clause.id}{f' ({place})' * fits}")
        self._paragraph(clause.statement + f" ({place})" * (not fits))

    def _painted(self, verdict: Verdict) -> str:
        word = verdict.value.ljust(_VERDICT)
        return f"\x1b[{COLOURS[verdict]}m{word}\x1b[0m" if self._colours else word

    def _paragraph(self, text: str) -> None:
        # A name that is broken at its hyphen is found by no search.
        lines = textwrap.wrap(
            text, self._width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
        )
        for line in lines:
            self._write(line)
