"""Which clauses a case breaks that ended with a FAIL: those that say MUST and that its end is about."""

from collections.abc import Iterable, Sequence
from typing import Final

from scripts.check.clauses.clause import BACK_END, DEVICE, Level
from scripts.check.clauses.table import CLAUSES
from scripts.check.verdict import SURVIVES, Failed, HungUpError, NotAnswered, NotReturned, Outcome, TargetError

COMES_BACK: Final = frozenset(
    [
        *("S-2", "S-10", "S-11", "S-17", "S-19", "S-21", "S-22"),
        *("P-1", "P-2", "P-4", "P-12", "P-15", "P-16"),
        *("G-10", "G-15", "G-16", "G-23", "BS-9", "BS-10"),
        *("V-3", "V-24", "V-31", "V-32", "V-35", "V-36", "V-38", "V-41", "V-42", "V-43"),
    ]
)
"""The clauses that can be broken where a buffer does not come back."""

ANSWERED: Final = "V-9"

_SERVES: Final = DEVICE | BACK_END


def blamed(error: Exception, exercised: Sequence[str]) -> tuple[str, ...]:
    """Return the clauses that the end of a case by ``error`` is about; ``exercised`` are all those of the case.

    A FAIL names what says MUST alone. A buffer that stays away is about the clauses of the case that ask for it, and
    else about the ring's; a connection that ended is about the target's survival, whatever the case was about.
    """
    match error:
        case TargetError() | HungUpError() | ConnectionError():
            return (SURVIVES,)
        case NotReturned():
            return tuple(clause for clause in exercised if clause in COMES_BACK) or error.clauses
        case NotAnswered():
            return tuple(clause for clause in _musts(exercised) if clause.startswith("V-")) or (ANSWERED,)
        case Failed():
            return _musts(error.clauses) or _musts(exercised)
        case Outcome():
            return error.clauses or tuple(exercised)
    # A step that the target, a device or a back-end, refused. It says nothing about the memory, nor about a driver.
    return tuple(clause for clause in _musts(exercised) if clause != "M-safe" and CLAUSES[clause].bound & _SERVES)


def _musts(clauses: Iterable[str]) -> tuple[str, ...]:
    return tuple(clause for clause in clauses if CLAUSES[clause].level is Level.MUST)
