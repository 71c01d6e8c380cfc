"""What came of a fault that was tried."""

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from scripts.check.broken.fault import Fault
from scripts.check.verdict import Result, Verdict

CAUGHT: Final = (Verdict.FAIL, Verdict.FINDING)

TRIES: Final = 3
"""How often a fault is tried that is not caught: where it shows depends on which of two threads comes first."""

AnyFault = TypeVar("AnyFault", bound=Fault)


class Trying(NamedTuple):
    """A fault, what the cases that have to catch it said, and what the program with it said of an error of its own."""

    fault: Fault
    results: list[Result]
    crash: str = ""

    @property
    def is_caught(self) -> bool:
        """Whether each of the cases noticed. A fault whose code does not run shows nothing, whatever the cases say."""
        return (
            not self.crash
            and len(self.results) == len(self.fault.caught_by)
            and all(one.verdict in CAUGHT for one in self.results)
        )

    def after(self, earlier: "Trying") -> "Trying":
        """Return this attempt with what an earlier one of the same fault has caught: a case that noticed did so."""
        caught = {one.case: one for one in earlier.results if one.verdict in CAUGHT}
        return self._replace(results=[caught.get(one.case, one) for one in self.results])


def try_until_caught(fault: AnyFault, try_one: Callable[[AnyFault], Trying]) -> Trying:
    """Try ``fault`` up to :data:`TRIES` times and return what came of it in the end."""
    trying = try_one(fault)
    for _ in range(TRIES - 1):
        if trying.is_caught or trying.crash:
            break
        trying = try_one(fault).after(trying)
    return trying


def line_of(result: Result) -> str:
    """Return a verdict, its case and its reason in one line."""
    return f"{result.verdict.value} {result.case}: {result.reason}"


def crash_of(said: str) -> str:
    """Return the last line of a traceback in what a program ``said``, empty without one."""
    _, begin, after = said.partition("Traceback (most recent call last):")
    return next((line for line in after.splitlines() if line and not line[0].isspace()), "unknown") if begin else ""
