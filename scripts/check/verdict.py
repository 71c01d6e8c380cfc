"""What a case finds out, and how it says so."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, NoReturn

from protocol.errors import BalloonError

NOT_JUDGED: Final = 3
"""Exit status when the target could not be judged."""


class Verdict(Enum):
    """The outcome of a case, or of all cases of a clause."""

    PASS = "PASS"
    FAIL = "FAIL"
    """A clause that says MUST was broken."""
    FINDING = "FINDING"
    """Something that an author has to know and no MUST decides: a broken SHOULD, or what is done where the text says
    nothing."""
    NOT_EXERCISED = "NOT EXERCISED"
    """The case could not be tried: the feature is not offered, or the target gives no way to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of one case.

    ``clauses`` are the ids that the case exercises, ``broken`` those of them that the verdict is about: all of them
    where the case does not say. ``reason`` is one sentence, empty for a PASS that has nothing to say. ``faulty`` says
    that the case ended by a fault of its own, and so judged nothing.
    """

    case: str
    verdict: Verdict
    clauses: tuple[str, ...]
    broken: tuple[str, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    faulty: bool = False


class Outcome(Exception):
    """Ends a case with a verdict other than PASS. ``clauses`` are those that it is about."""

    verdict: Verdict

    def __init__(self, reason: str, *clauses: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.clauses = clauses


class Failed(Outcome):
    """The other side broke a clause that says MUST. The reason names what was expected, what was seen, and the bytes
    that show it."""

    verdict = Verdict.FAIL


class NotReturned(Failed):
    """A buffer did not come back, or not as one that was given. ``clauses`` are those of its ring."""


class NotAnswered(Failed):
    """A message was not answered, or with what is no reply to it."""


class Found(Outcome):
    """The other side does something that its counterpart's author has to know, and no MUST decides."""

    verdict = Verdict.FINDING


class NotExercised(Outcome):
    """The case could not be tried; the reason says why."""

    verdict = Verdict.NOT_EXERCISED


SURVIVES: Final = "M-alive"
"""The clause that a target breaks that does not survive a case."""


class TargetError(BalloonError):
    """The target cannot be judged: it cannot be reached, is something else, or went away and stays away."""


class HungUpError(BalloonError):
    """The back-end ended the connection."""


def require(condition: bool, reason: str, *clauses: str) -> None:
    """Raise :class:`Failed` unless ``condition`` holds."""
    if not condition:
        raise Failed(reason, *clauses)


def skip(reason: str) -> NoReturn:
    """Raise :class:`NotExercised`."""
    raise NotExercised(reason)
