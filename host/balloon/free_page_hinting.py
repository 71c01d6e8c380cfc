"""Free page hinting: which round is on, and whether the pages that a driver hints may be discarded.

A round begins when the device shows a new command id in its configuration space. The driver answers with that id on the
free page queue, then gives its free blocks as device-writable buffers, then says STOP. It keeps the blocks until the
device shows DONE (virtio 1.2, 5.5.6.5).

When a hinted block may be discarded
------------------------------------
Only before it is given back as used, only in the round that it was hinted for, and never once DONE is shown:

* The content of a block may be changed only as long as the guest has not written to it since the id was issued, and not
  after DONE. The device cannot see writes, so it has to know that the driver still holds the block. Between the kick
  and the used entry a driver that releases blocks in order of their completion holds it; later it is unknown.
* But the text also lets a driver release hinted blocks "even before the device has used them", provided that it
  initialises them. Linux does when its shrinker runs short of memory. Such a block may be in use, and written to, when
  the device gets to it: the discard then destroys data, and nothing that the device can do prevents it. So this feature
  is **not safe with Linux under memory pressure**. It is offered only where the operator asks for it. Free page
  reporting has no such gap, and neither has inflating.
* A discard that is under way when DONE is shown would break the second rule. Therefore DONE is not shown before
  :meth:`FreePageHinting.stop` was called *and* the worker of the free page queue was seen between two turns: from then
  on it finds the round closed before it discards anything (``RingService.settled``).

Threads
-------
``start``, ``stop``, ``done``, ``forget_driver``, ``follow`` and ``reset`` belong to the event loop, ``take_command``,
``misunderstood`` and ``accepts`` to the worker of the free page queue. Each field is written on one side only;
``forget_driver``, ``follow`` and ``reset`` are for times when no worker is at the queue.
"""

from dataclasses import dataclass
from typing import Final

from protocol.errors import BalloonError

COMMAND_ID_STOP: Final = 0
"""As the device's id: give no more hints. As the driver's: these were all."""

COMMAND_ID_DONE: Final = 1
"""The device needs the hinted blocks no longer; the driver may release them."""

COMMAND_ID_FIRST: Final = 2
COMMAND_IDS: Final = (1 << 32) - COMMAND_ID_FIRST
"""Ids that a round can have: 32 bits without the two above."""

COMMAND_ID_SIZE: Final = 4


@dataclass(slots=True)
class FreePageHinting:
    """The state of one device. ``command_id`` is what its configuration space shows."""

    command_id: int = COMMAND_ID_STOP
    driver_id: int | None = None
    """The round that the driver said its blocks are for; None before it said any and after STOP."""
    ended_id: int | None = None
    """The round that the driver ended last. Blocks under this id come too late."""
    last_id: int = COMMAND_ID_DONE
    issued: int = 0
    issued_at_stop: int = 0

    def start(self) -> int:
        """Begin a round; return its id, which counts from 2 and passes over 0 and 1 when it wraps.

        Raises:
            BalloonError: a round is on, or every id was used since the driver last said STOP. "The device MUST NOT
                reuse a command ID until it has received an output descriptor containing VIRTIO_BALLOON_CMD_ID_STOP".
        """
        if self.is_open:
            raise BalloonError("a round of free page hinting is under way")
        if self.issued - self.issued_at_stop >= COMMAND_IDS:
            raise BalloonError("the driver has not ended any round of free page hinting, and no command id is left")
        self.last_id = (self.last_id + 1 - COMMAND_ID_FIRST) % COMMAND_IDS + COMMAND_ID_FIRST
        self.issued += 1
        self.command_id = self.last_id
        return self.command_id

    @property
    def is_open(self) -> bool:
        """Whether a round is on."""
        return self.command_id >= COMMAND_ID_FIRST

    def stop(self) -> None:
        """Close the round: no block that is looked at from now on is discarded."""
        self.command_id = COMMAND_ID_STOP

    def done(self) -> None:
        """Let the driver release its blocks. The round must be closed and no worker in the middle of a chain."""
        assert not self.is_open
        self.command_id = COMMAND_ID_DONE

    def take_command(self, command_id: int) -> None:
        """Take the id that the driver put on the queue."""
        if command_id == COMMAND_ID_STOP:
            if self.driver_id is not None:
                self.ended_id = self.driver_id
            self.issued_at_stop = self.issued
            self.driver_id = None
        else:
            self.driver_id = command_id

    def misunderstood(self) -> None:
        """Take note of an invalid command: the blocks after it belong to no round, and are kept."""
        self.driver_id = None

    def accepts(self) -> bool:
        """Return whether a block that the driver gives now may be discarded."""
        current = self.command_id
        return current >= COMMAND_ID_FIRST and self.driver_id == current and self.ended_id != current

    def forget_driver(self) -> None:
        """The queue begins anew: forget the commands of an earlier driver."""
        self.driver_id = self.ended_id = None

    def follow(self, last_id: int) -> None:
        """Go on after round ``last_id`` of another device for the same driver. That round is over, complete or not: the
        driver may release its blocks, and an id that it may have seen last is not used again."""
        self.command_id, self.last_id, self.issued, self.issued_at_stop = COMMAND_ID_DONE, last_id, 1, 0
        self.forget_driver()

    def reset(self) -> None:
        """The device was reset: the round is over, and its driver's blocks are released."""
        self.command_id = COMMAND_ID_STOP
        self.forget_driver()
