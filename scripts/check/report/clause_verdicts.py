"""What a run says about each clause."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scripts.check.clauses.clause import Bound, Clause
from scripts.check.verdict import Result, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ClauseVerdict:
    """The verdict on a clause, and the cases that exercised it. ``reason`` is that of the first that broke it."""

    clause: Clause
    verdict: Verdict
    cases: tuple[str, ...]
    reason: str = ""


def judge_clauses(
    results: Sequence[Result], clauses: Mapping[str, Clause], bound: Iterable[Bound]
) -> list[ClauseVerdict]:
    """Return a verdict on each clause that binds one of ``bound``, in the order of the table.

    FAIL if a case failed over it, else FINDING if one has found something about it, else PASS if a case exercised it
    and had nothing to say about it, else NOT EXERCISED.
    """
    who = frozenset(bound)
    return [_judge(clause, results) for clause in clauses.values() if clause.bound & who]


def _judge(clause: Clause, results: Sequence[Result]) -> ClauseVerdict:
    exercised = [one for one in results if clause.id in one.clauses and one.verdict is not Verdict.NOT_EXERCISED]
    for verdict in (Verdict.FAIL, Verdict.FINDING):
        for one in results:
            if one.verdict is verdict and clause.id in one.broken:
                cases = tuple(other.case for other in exercised) or (one.case,)
                return ClauseVerdict(clause=clause, verdict=verdict, cases=cases, reason=one.reason)
    verdict = Verdict.PASS if exercised else Verdict.NOT_EXERCISED
    return ClauseVerdict(clause=clause, verdict=verdict, cases=tuple(one.case for one in exercised))
