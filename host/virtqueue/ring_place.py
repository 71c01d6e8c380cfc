"""Where the three parts of a ring lie in the guest's memory, and under which addresses its writes are logged."""

from dataclasses import dataclass
from typing import TypeAlias

from protocol.memory import FileRange

RingLog: TypeAlias = tuple[int, int, int]
"""The guest addresses under which the dirty log has the three parts of a ring."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingPlace:
    """Where the three parts of a ring of ``size`` entries lie in the guest's memory.

    ``available`` and ``used`` are the driver and the device event area of a packed ring.
    """

    size: int
    packed: bool = False
    descriptor: FileRange
    available: FileRange
    used: FileRange

    @property
    def parts(self) -> tuple[FileRange, FileRange, FileRange]:
        """The three parts, descriptor table first."""
        return self.descriptor, self.available, self.used
