"""What a run says about each clause."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scripts.check.clauses.clause import Bound, Clause
from scripts.check.clauses.unseen import UNSEEN
from scripts.check.verdict import Result, Verdict

NOT_CHOSEN: Final = "no case of this run is about it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClauseVerdict:
    """The verdict on a clause, and the cases that exercised it. ``reason`` is that of the first that broke it, or
    why it is NOT EXERCISED."""

    clause: Clause
    verdict: Verdict
    cases: tuple[str, ...]
    reason: str = ""


def judge_clauses(
    results: Sequence[Result], clauses: Mapping[str, Clause], bound: Iterable[Bound], also: Iterable[Bound] = ()
) -> list[ClauseVerdict]:
    """Return a verdict on each clause that binds one of ``bound``, in the order of the table.

    FAIL if a case failed over it, else FINDING if one has found something about it, else PASS if a case exercised it
    and had nothing to say about it, else NOT EXERCISED. A target may have another role, whose clauses are another
    suite's: of those that bind one of ``also`` it has the ones that a case of this run names. What a FAIL or a FINDING
    is about has a verdict whomever it binds.
    """
    who, other = frozenset(bound), frozenset(also)
    named = {id_ for one in results for id_ in one.clauses}
    told = {id_ for one in results if one.verdict in (Verdict.FAIL, Verdict.FINDING) for id_ in one.broken}
    return [
        _judge(clause, results)
        for clause in clauses.values()
        if clause.bound & who or (clause.bound & other and clause.id in named) or clause.id in told
    ]


def _judge(clause: Clause, results: Sequence[Result]) -> ClauseVerdict:
    exercised = [one for one in results if clause.id in one.clauses and one.verdict is not Verdict.NOT_EXERCISED]
    for verdict in (Verdict.FAIL, Verdict.FINDING):
        for one in results:
            if one.verdict is verdict and clause.id in one.broken:
                cases = tuple(other.case for other in exercised) or (one.case,)
                return ClauseVerdict(clause=clause, verdict=verdict, cases=cases, reason=one.reason)
    if exercised:
        return ClauseVerdict(clause=clause, verdict=Verdict.PASS, cases=tuple(one.case for one in exercised))
    untried = next((one.reason for one in results if clause.id in one.clauses), "")
    reason = untried or UNSEEN.get(clause.id, NOT_CHOSEN)
    return ClauseVerdict(clause=clause, verdict=Verdict.NOT_EXERCISED, cases=(), reason=reason)
