"""What a world is like: the features that were negotiated, the format of its rings, its reporter."""

from dataclasses import dataclass, fields
from random import Random
from typing import Final

REPORTERS: Final = ("boundary", "rotation", "scan")
RINGS: Final = ("split", "packed")
SWITCH: Final = ("off", "on")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """The first line of a script. Each field is one word of a few; the first is the simplest."""

    ring: str = RINGS[0]
    reporter: str = REPORTERS[0]
    must_tell_host: str = SWITCH[0]
    deflate_on_oom: str = SWITCH[0]
    per_cpu_lists: str = SWITCH[0]

    def __str__(self) -> str:
        return "world " + " ".join(f"{word_of(each.name)} {getattr(self, each.name)}" for each in fields(self))


CHOICES: Final = {
    "ring": RINGS,
    "reporter": REPORTERS,
    "must_tell_host": SWITCH,
    "deflate_on_oom": SWITCH,
    "per_cpu_lists": SWITCH,
}
"""The words of each field."""


def word_of(field: str) -> str:
    """Return the word that a script has for a field."""
    return field.replace("_", "-")


def random_options(random: Random) -> WorldOptions:
    """Return any options."""
    return WorldOptions(**{name: random.choice(words) for name, words in CHOICES.items()})
