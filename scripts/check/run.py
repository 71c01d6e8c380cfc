"""Runs cases against a target, one after another, each with a fresh one."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from protocol.errors import BalloonError
from scripts.check.blame import blamed
from scripts.check.suite import Case
from scripts.check.verdict import SURVIVES, Outcome, Result, TargetError, Verdict

Target = TypeVar("Target")

Open = Callable[[], AbstractContextManager[Target]]
"""Makes a fresh target for a case. Raises TargetError if the target cannot be reached."""


def run_cases(cases: Sequence[Case[Target]], fresh: Open[Target]) -> Iterator[Result]:
    """Run ``cases`` and yield a result after each.

    A target that can no longer be reached after a case did not survive it: the case FAILs, and those left are NOT
    EXERCISED.

    Raises:
        TargetError: the target could not be reached for the first case.
    """
    last: Result | None = None
    for number, case in enumerate(cases):
        with ExitStack() as stack:
            try:
                target = stack.enter_context(fresh())
            except TargetError as error:
                if last is None:
                    raise
                yield _ended_by(last, str(error))
                yield from (_not_reached(left, str(error)) for left in cases[number:])
                return
            if last is not None:
                yield last
            last = _run_case(case, target)
    if last is not None:
        yield _after_all(last, fresh)


def _run_case(case: Case[Target], target: Target) -> Result:
    begin = time.monotonic()
    verdict, broken, reason, faulty = Verdict.PASS, tuple[str, ...](), "", False
    try:
        case.run(target)
    except Outcome as outcome:
        verdict, reason = outcome.verdict, outcome.reason
        broken = blamed(outcome, case.clauses)
    except (BalloonError, OSError) as error:
        # In the part of the case that a well-behaved counterpart does: the target refused it, or went away.
        verdict, reason, broken = Verdict.FAIL, str(error) or type(error).__name__, blamed(error, case.clauses)
    except Exception as error:
        # A fault of the case, which says nothing about the target and must not end the run.
        verdict, reason = Verdict.NOT_EXERCISED, f"the case itself has a fault: {type(error).__name__}: {error}"
        faulty = True
    return Result(
        case=case.name,
        verdict=verdict,
        clauses=case.clauses,
        broken=broken,
        reason=reason,
        seconds=time.monotonic() - begin,
        faulty=faulty,
    )


def _after_all(last: Result, fresh: Open[Target]) -> Result:
    try:
        with fresh():
            return last
    except TargetError as error:
        return _ended_by(last, str(error))


def _not_reached(case: Case[Target], why: str) -> Result:
    reason = f"the target is gone: {why}"
    return Result(case=case.name, verdict=Verdict.NOT_EXERCISED, clauses=case.clauses, reason=reason)


def _ended_by(result: Result, why: str) -> Result:
    # What else the case has seen may be the target's end: a buffer that stayed away, a reply that did not come.
    reason = f"{result.reason}; afterwards: {why}" if result.reason else f"the target did not survive: {why}"
    return Result(
        case=result.case,
        verdict=Verdict.FAIL,
        clauses=result.clauses,
        broken=(SURVIVES,),
        reason=reason,
        seconds=result.seconds,
    )
