"""The driver's half of a virtqueue, whatever its format: requests out, completions in.

The formats are :mod:`guest.split_virtqueue` and :mod:`guest.packed_virtqueue`.

Must not know: what a buffer means, how a kick travels, how a ring is laid out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import BalloonError

Buffer = tuple[int, int]
"""A guest address and a length in bytes."""

WriteGuest = Callable[[int, bytes], None]
"""Stores bytes at a guest address."""


class QueueFullError(BalloonError):
    """There are fewer free descriptors than the request needs. Nothing was added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndirectTables:
    """Guest memory set aside for indirect tables: their guest addresses, and how many descriptors each holds."""

    addresses: tuple[int, ...]
    capacity: int


@dataclass(frozen=True, slots=True)
class UsedBuffer:
    """A request the device is done with: its head and the bytes that the device says it wrote."""

    head: int
    length: int


class DriverVirtqueue(Protocol):
    """The driver's side of one virtqueue over zeroed ring memory."""

    @property
    def outstanding(self) -> int:
        """Number of requests that the device has not given back."""

    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer]) -> int:
        """Make one request available and return its head. The device is not told yet: see :meth:`needs_kick`.

        Raises:
            QueueFullError: too few free descriptors.
        """

    def needs_kick(self) -> bool:
        """Return whether the device wants to be told about what was added since this was last asked."""

    def get_used(self) -> UsedBuffer | None:
        """Take the next request that the device is done with, or return None.

        Raises:
            VirtqueueError: the device broke a rule of the ring.
        """

    def enable_interrupt(self) -> bool:
        """Ask for an interrupt with the next used entry. Return True if there is one already: then collect it."""
