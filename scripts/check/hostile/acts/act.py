"""The acts of hostile sessions, by name. A module of acts adds its own when it is imported: see ``all_acts``."""

from collections.abc import Callable
from typing import Final, NamedTuple

from scripts.check.hostile.acts.attack import Attack, Stage

Do = Callable[[Attack], None]


class Act(NamedTuple):
    """What a session does once it has come to ``stage`` or further."""

    name: str
    stage: Stage
    do: Do


ACTS: Final[dict[str, Act]] = {}


def act(name: str, stage: Stage = Stage.CONNECTED) -> Callable[[Do], Do]:
    """Return a decorator that adds a function as the act ``name``. Its docstring says what it does."""
    assert name not in ACTS, name

    def add(do: Do) -> Do:
        assert do.__doc__, name
        ACTS[name] = Act(name, stage, do)
        return do

    return add
