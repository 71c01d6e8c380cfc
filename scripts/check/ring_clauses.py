"""The clauses of the ring format that a case was tried with: S are those of split rings, P those of packed ones."""

import functools
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from scripts.check.verdict import Outcome

Target = TypeVar("Target")

_PACKED: Final = {
    "S-3": "P-9",
    "S-4": "P-3",
    "S-8": "P-8",
    "S-15": "P-14",
    "S-16": "P-14",
    "S-17": "P-16",
    "S-19": "P-15",
    "S-22": "P-14",
}
"""What the text says of packed rings where it says the same of split ones."""


def of_format(clauses: Iterable[str], *, packed: bool) -> tuple[str, ...]:
    """Return ``clauses`` without those of the other format."""
    others = "S-" if packed else "P-"
    return tuple(clause for clause in clauses if not clause.startswith(others))


def blaming_format(run: Callable[[Target], None], *, packed: bool) -> Callable[[Target], None]:
    """Return ``run`` so that its outcome is about clauses of the format alone.

    Where all that it names are of split rings and the ring was packed, their counterparts take their place.
    """

    @functools.wraps(run)
    def run_in_format(target: Target) -> None:
        try:
            run(target)
        except Outcome as outcome:
            counterparts = (_PACKED[one] for one in outcome.clauses if packed and one in _PACKED)
            outcome.clauses = of_format(outcome.clauses, packed=packed) or tuple(dict.fromkeys(counterparts))
            raise

    return run_in_format
