"""The Kernel Test Anything Protocol, version 1. A FINDING is ok, with a comment."""

from collections.abc import Callable

from scripts.check.report.reporter import Summary
from scripts.check.verdict import Result, Verdict


class KtapReport:
    """Writes lines with ``write`` as the cases end."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._number = 0

    def begin(self, target: str, cases: int) -> None:
        """Write version and plan."""
        self._write("KTAP version 1")
        self._write(f"# {_one_line(target)}")
        self._write(f"1..{cases}")

    def result(self, result: Result) -> None:
        """Write the case's line, and its reason as a comment before it."""
        self._number += 1
        if result.reason and result.verdict is not Verdict.NOT_EXERCISED:
            self._write(f"# {result.verdict.value}: {_one_line(result.reason)}")
        word = "not ok" if result.verdict is Verdict.FAIL else "ok"
        skip = f" # SKIP {_one_line(result.reason)}" if result.verdict is Verdict.NOT_EXERCISED else ""
        self._write(f"{word} {self._number} {result.case}{skip}")

    def end(self, summary: Summary) -> None:
        """Write the sums."""
        counts = " ".join(f"{word}:{summary.count(verdict)}" for word, verdict in _TOTALS)
        self._write(f"# Totals: {counts}")


_TOTALS = (
    ("pass", Verdict.PASS),
    ("fail", Verdict.FAIL),
    ("finding", Verdict.FINDING),
    ("skip", Verdict.NOT_EXERCISED),
)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("#", "no.")
