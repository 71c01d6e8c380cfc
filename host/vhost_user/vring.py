"""One virtqueue as the front-end configured it, message by message, before and between the times it runs.

Front-ends send size, addresses, base, kick and enable in different orders, so values are collected and the ring is
(re)built when everything is there. Source: vhost-user specification, "Ring states".

A ring that should run but whose memory is not there is *parked*: it runs as soon as the memory is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from host.virtqueue.ring_place import RingLog, RingPlace
from protocol.errors import VhostUserError, VirtqueueError
from protocol.memory import FileRange, RegionTable
from protocol.ring_formats import RingLayout, part_alignments, part_names
from protocol.vhost_user_payloads import VringAddress, VringAddressFlag
from protocol.virtio_ring import check_queue_size


class RingState(Enum):
    """The state of a ring. ``enabled`` is independent of it: only an enabled ring can get from STARTED to RUNNING."""

    STOPPED = "stopped"
    """Not set up, or stopped by the front-end. The back-end touches nothing."""
    STARTED = "started"
    """To be served as soon as it is enabled and its memory is there. The back-end leaves it as it is."""
    RUNNING = "running"
    """Served."""
    BROKEN = "broken"
    """The driver broke a rule of the ring. The back-end touches nothing until the ring is set up anew."""


class RingEvent(Enum):
    """What moves a ring from one state to another."""

    START = "start"
    """SET_VRING_KICK; without a kick descriptor SET_VRING_ENABLE 1 or the first VRING_KICK."""
    RUN = "run"
    """The shell began to serve it."""
    PAUSE = "pause"
    """The shell stopped serving it, in whole: after SET_VRING_ENABLE 0, or while memory or descriptors change."""
    BREAK = "break"
    """The shell stopped serving it because it is broken."""
    HALT = "halt"
    """GET_VRING_BASE, RESET_DEVICE; a new size, base or address. The shell stopped serving it before."""


TRANSITIONS: Final[Mapping[tuple[RingState, RingEvent], RingState]] = MappingProxyType(
    {
        (RingState.STOPPED, RingEvent.START): RingState.STARTED,
        (RingState.STARTED, RingEvent.START): RingState.STARTED,
        (RingState.BROKEN, RingEvent.START): RingState.STARTED,
        (RingState.STARTED, RingEvent.RUN): RingState.RUNNING,
        (RingState.RUNNING, RingEvent.PAUSE): RingState.STARTED,
        (RingState.RUNNING, RingEvent.BREAK): RingState.BROKEN,
        (RingState.STOPPED, RingEvent.HALT): RingState.STOPPED,
        (RingState.STARTED, RingEvent.HALT): RingState.STOPPED,
        (RingState.BROKEN, RingEvent.HALT): RingState.STOPPED,
    }
)
"""All transitions. A missing pair is a fault of the back-end."""


@dataclass(slots=True)
class Vring:
    """The front-end's settings of one queue, and whether the queue runs.

    ``base`` is where to start from, in the form of SET_VRING_BASE. ``size`` is 0 and ``address`` None until they are
    set.
    ``parked`` says why the ring cannot run although it should, once that was found. ``signal_first`` asks for one
    interrupt when the ring runs again, ``resumes`` says that it has run since it was set up, ``address_set`` that its
    addresses were told, or confirmed by a kick, since GET_VRING_BASE, ``recovers`` that an inflight file has come since
    it last ran. ``log`` is where its writes are logged while it runs. ``has_role`` says that it was known which queue
    it is when it last began to run.
    ``left_at`` is where it stood when it last stopped running.
    """

    index: int
    size: int = 0
    base: int = 0
    address: VringAddress | None = None
    state: RingState = RingState.STOPPED
    enabled: bool = False
    parked: str | None = None
    signal_first: bool = False
    resumes: bool = False
    address_set: bool = False
    recovers: bool = False
    log: RingLog | None = None
    has_role: bool = False
    left_at: int = 0

    def move(self, event: RingEvent) -> None:
        """Go to the state that ``event`` leads to."""
        self.state = TRANSITIONS[self.state, event]

    @property
    def started(self) -> bool:
        """Whether the front-end has started the ring and not stopped it, also if it broke meanwhile."""
        return self.state is not RingState.STOPPED

    @property
    def running(self) -> bool:
        """Whether the ring is served."""
        return self.state is RingState.RUNNING

    def set_size(self, size: int, *, packed: bool = False) -> None:
        """Take SET_VRING_NUM. Raises :class:`VhostUserError`, keeping the old size, for one that no ring can have."""
        try:
            check_queue_size(size, packed=packed)
        except VirtqueueError as error:
            raise VhostUserError(str(error)) from error
        self.size = size

    def set_address(self, address: VringAddress, table: RegionTable, *, packed: bool = False) -> None:
        """Take SET_VRING_ADDR. Raises :class:`VhostUserError` for parts that are misaligned or outside the memory.

        Before the first memory table the place cannot be judged; it is then judged when the ring is to run.
        """
        self._check_alignments(address, packed=packed)
        addresses = (address.descriptor, address.available, address.used)
        for name, user_address in zip(part_names(packed=packed), addresses, strict=True):
            if table.regions and table.translate_user(user_address, 1) is None:
                raise VhostUserError(f"{name} of queue {self.index} at {user_address:#x} is outside the guest's memory")
        self.address, self.address_set = address, True

    def _check_alignments(self, address: VringAddress, *, packed: bool) -> None:
        addresses = (address.descriptor, address.available, address.used)
        alignments, names = part_alignments(packed=packed), part_names(packed=packed)
        for name, user_address, align in zip(names, addresses, alignments, strict=True):
            if user_address % align:
                raise VhostUserError(f"{name} of queue {self.index} at {user_address:#x} is not {align}-byte aligned")

    def is_at(self, address: VringAddress) -> bool:
        """Return whether the ring has the same three addresses already; flags and log address may differ."""
        mine = self.address
        return mine is not None and (mine.descriptor, mine.available, mine.used) == (
            address.descriptor,
            address.available,
            address.used,
        )

    @property
    def is_set_up(self) -> bool:
        """Whether the front-end has described this ring for the driver at hand: it has a size and a place."""
        return self.address_set and self.size > 0 and self.address is not None

    @property
    def is_wanted(self) -> bool:
        """Whether the front-end wants the ring to run and has said all that it takes."""
        ready = self.state in (RingState.STARTED, RingState.RUNNING)
        return ready and self.enabled and self.size > 0 and self.address is not None

    def place(self, table: RegionTable, *, packed: bool = False) -> RingPlace:
        """Return where the ring lies.

        Raises:
            VhostUserError: part of it lies outside the memory, straddles two regions, or is not as its format demands.
        """
        assert self.address is not None
        self.set_size(self.size, packed=packed)  # size and addresses may have come before the features
        self._check_alignments(self.address, packed=packed)
        addresses = (self.address.descriptor, self.address.available, self.address.used)
        layout = RingLayout(self.size, packed)
        parts: list[FileRange] = []
        for name, user_address, length in zip(layout.names, addresses, layout.lengths, strict=True):
            part = table.translate_user(user_address, length)
            if part is None:
                raise VhostUserError(
                    f"{name} of queue {self.index}, {length} bytes at {user_address:#x}, is not in one memory region"
                )
            parts.append(part)
        return RingPlace(size=self.size, packed=packed, descriptor=parts[0], available=parts[1], used=parts[2])

    def log_places(self, table: RegionTable, *, packed: bool = False) -> RingLog | None:
        """Return under which addresses the dirty log has the ring, or None where its writes are not to be logged.

        The front-end tells the used ring's address ("log guest address") for a split ring. A packed ring is written in
        two of its parts, and each is logged where it lies.
        """
        assert self.address is not None
        if not self.address.flags & VringAddressFlag.LOG:
            return None
        if not packed:
            return 0, 0, self.address.log
        parts = self.place(table, packed=True).parts
        descriptor, driver, device = map(table.guest_of, parts)
        return descriptor, driver, device

    def reset(self) -> None:
        """Forget all settings of the front-end, as after RESET_DEVICE."""
        self.move(RingEvent.HALT)
        self.size, self.base, self.left_at, self.address = 0, 0, 0, None
        self.enabled = self.address_set = False
        self.parked, self.signal_first, self.resumes, self.recovers = None, False, False, False
