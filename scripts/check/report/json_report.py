"""The report for programs."""

import json
from collections.abc import Callable

from scripts.check.report.reporter import Summary
from scripts.check.verdict import Result


class JsonReport:
    """Writes one document with ``write`` at the end."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def begin(self, target: str, cases: int) -> None:
        """Nothing is written yet."""

    def result(self, result: Result) -> None:
        """Nothing is written yet."""

    def end(self, summary: Summary) -> None:
        """Write results and clauses."""
        document = {
            "target": summary.target,
            "seconds": round(summary.seconds, 3),
            "results": [
                {
                    "case": one.case,
                    "verdict": one.verdict.value,
                    "clauses": list(one.clauses),
                    "broken": list(one.broken),
                    "reason": one.reason,
                    "seconds": round(one.seconds, 4),
                }
                for one in summary.results
            ],
            "clauses": [
                {
                    "id": one.clause.id,
                    "verdict": one.verdict.value,
                    "level": one.clause.level.value,
                    "bound": sorted(bound.value for bound in one.clause.bound),
                    "statement": one.clause.statement,
                    "section": one.clause.section,
                    "cases": list(one.cases),
                    "reason": one.reason,
                }
                for one in summary.clauses
            ],
        }
        self._write(json.dumps(document, indent=2))
