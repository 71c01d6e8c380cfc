"""The effects that a vhost-user message can have, as values: :mod:`host.vhost_user.backend` yields them, the shell
performs them.

A file descriptor in an action changes its owner: the shell that performs the action closes it eventually.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from host.virtqueue.ring_place import RingLog, RingPlace
from host.virtqueue.virtqueue import RingFeatures
from protocol.memory import RegionTable
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import InflightDescription
from protocol.virtio_balloon import BalloonQueue


@dataclass(frozen=True, slots=True)
class ReplaceMemory:
    """Take these regions, one file descriptor each, in place of all earlier ones. No ring runs meanwhile."""

    table: RegionTable
    fds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AddRegion:
    """Take one more region, which becomes the last of ``table``. Rings may run meanwhile."""

    table: RegionTable
    fd: int


@dataclass(frozen=True, slots=True)
class DropRegion:
    """Give up region ``number`` of the old table; ``table`` is what is left. No ring runs meanwhile."""

    table: RegionTable
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRing:
    """Serve a queue from now on. First interrupt the driver if asked to, then look at the ring once.

    ``queue`` None is a queue that no numbering knows: its chains are given back without effect.
    ``base`` is where the ring goes on, in the form of SET_VRING_BASE: 16 bits of a split ring, 32 of a packed one.
    ``resumes`` says that the front-end has not set the queue up anew since it was last stopped. ``inband`` says that
    kicks and interrupts for which there is no descriptor are messages. ``recovers`` says that an inflight file has come
    that may tell of chains in flight. ``log`` is where the dirty log has the ring's writes.
    """

    index: int
    queue: BalloonQueue | None
    place: RingPlace
    base: int
    features: RingFeatures
    signal_first: bool = False
    resumes: bool = False
    inband: bool = False
    recovers: bool = False
    log: RingLog | None = None


@dataclass(frozen=True, slots=True)
class LogRing:
    """From now on log the writes into a running queue's ring in the dirty log, or stop logging them (None)."""

    index: int
    log: RingLog | None


@dataclass(frozen=True, slots=True)
class StopRing:
    """Stop serving a queue: finish the chain in hand, then touch its ring no more.

    Without ``drain`` a chain whose discards are not all done is put back, as if it had not been taken. Answered with
    :class:`StoppedRing`.
    """

    index: int
    drain: bool = True


@dataclass(frozen=True, slots=True)
class StoppedRing:
    """The state of a ring when it stopped: where to go on, and whether its driver broke a rule meanwhile."""

    base: int
    broken: bool = False


@dataclass(frozen=True, slots=True)
class KickRing:
    """Look at the ring of a queue that is served: the driver has kicked it by a message."""

    index: int


@dataclass(frozen=True, slots=True)
class SetVringFile:
    """Take ``fd``, or None, as a queue's kick, call or error descriptor in place of the earlier one."""

    request: FrontendRequest
    index: int
    fd: int | None


@dataclass(frozen=True, slots=True)
class SetBackendChannel:
    """Take ``fd`` as the channel for the back-end's own requests in place of the earlier one."""

    fd: int


@dataclass(frozen=True, slots=True)
class SendBackendRequest:
    """Send the bytes of a request on the back-end's channel, and wait for nothing."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SetLog:
    """Take ``size`` bytes at ``offset`` of ``fd`` as the dirty log. Rings may run meanwhile."""

    fd: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class SetLogFile:
    """Take ``fd`` as the descriptor to be signalled when something was logged, in place of the earlier one."""

    fd: int


@dataclass(frozen=True, slots=True)
class MakeInflightFile:
    """Make a file of ``size`` zero bytes. Answered with its descriptor, which goes out with the reply."""

    size: int


@dataclass(frozen=True, slots=True)
class SetInflightFile:
    """Take ``fd`` as the inflight file in place of the earlier one. No ring runs meanwhile."""

    fd: int
    told: InflightDescription
    packed: bool


@dataclass(frozen=True, slots=True)
class SaveState:
    """Begin to write the device's state to ``fd``, and close it then. Any transfer under way is given up."""

    fd: int


@dataclass(frozen=True, slots=True)
class LoadState:
    """Begin to read a device's state from ``fd``, and close it then. Any transfer under way is given up."""

    fd: int


@dataclass(frozen=True, slots=True)
class FinishState:
    """Wait for the transfer that was begun last; after a load, go on from the state that came."""


@dataclass(frozen=True, slots=True)
class DropMigration:
    """Give up the dirty log, the inflight file and any transfer of the device's state. No ring runs meanwhile."""


@dataclass(frozen=True, slots=True)
class ForgetDriver:
    """Reset the controls' state of the driver: the balloon's size, the statistics, commands that wait for the driver.
    The device's own state is reset before."""


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Emit one event with its fields."""

    event: str
    fields: dict[str, object]


MigrationAction: TypeAlias = (
    SetLog | SetLogFile | MakeInflightFile | SetInflightFile | SaveState | LoadState | FinishState | DropMigration
)

Action: TypeAlias = (
    ReplaceMemory
    | AddRegion
    | DropRegion
    | StartRing
    | StopRing
    | KickRing
    | SetVringFile
    | SetBackendChannel
    | SendBackendRequest
    | LogRing
    | MigrationAction
    | ForgetDriver
    | EmitEvent
)

ActionResult: TypeAlias = StoppedRing | int | None
"""The shell's answer: to StopRing a :class:`StoppedRing`, to MakeInflightFile a descriptor, to all else None."""

Effects: TypeAlias = Generator[Action, ActionResult, None]
"""Actions to perform, one after the other."""
