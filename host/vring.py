"""One virtqueue as the front-end configured it, message by message, before and between the times it runs.

Front-ends send size, addresses, base, kick and enable in different orders, so values are collected and the ring is
(re)built when everything is there. Source: vhost-user specification, "Ring states".

==================  =====================================================  ==========================================
state               entered by                                             the back-end
==================  =====================================================  ==========================================
stopped             initially; GET_VRING_BASE; RESET_DEVICE; a new size,   touches nothing
                    base or address of a started ring
started, disabled   SET_VRING_KICK                                         touches nothing, loses nothing
started, enabled    SET_VRING_ENABLE 1, or SET_FEATURES without bit 30     serves the ring: it *runs*
broken              the driver broke a rule of the ring                    touches nothing until it is set up anew
==================  =====================================================  ==========================================

A ring that should run but whose memory is not there is *parked*: it runs as soon as the memory is.

Must not know: messages, sockets, the balloon.
"""

from dataclasses import dataclass

from protocol.errors import VhostUserError, VirtqueueError
from protocol.memory import FileRange, RegionTable
from protocol.vhost_user import VringAddress
from protocol.virtio_ring import (
    AVAIL_RING_ALIGN,
    DESCRIPTOR_TABLE_ALIGN,
    USED_RING_ALIGN,
    avail_ring_bytes,
    check_queue_size,
    descriptor_table_bytes,
    used_ring_bytes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingPlace:
    """Where the three parts of a ring of ``size`` entries lie in the guest's memory."""

    size: int
    descriptor: FileRange
    available: FileRange
    used: FileRange

    @property
    def parts(self) -> tuple[FileRange, FileRange, FileRange]:
        """The three parts, descriptor table first."""
        return self.descriptor, self.available, self.used


@dataclass(slots=True)
class Vring:
    """What the front-end said about one queue, and whether the queue runs.

    ``base`` is the next available index (16 bits) to start from. ``size`` zero and ``address`` None mean: not told yet.
    ``parked`` says why the ring cannot run although it should, once that was found. ``signal_first`` asks for one
    interrupt when the ring runs again, ``resumes`` says that it has run since it was set up.
    """

    index: int
    size: int = 0
    base: int = 0
    address: VringAddress | None = None
    started: bool = False
    enabled: bool = False
    broken: bool = False
    running: bool = False
    parked: str | None = None
    signal_first: bool = False
    resumes: bool = False

    def set_size(self, size: int) -> None:
        """Take SET_VRING_NUM. Raises :class:`VhostUserError`, keeping the old size, for one that no ring can have."""
        try:
            check_queue_size(size)
        except VirtqueueError as error:
            raise VhostUserError(str(error)) from error
        self.size = size

    def set_address(self, address: VringAddress, table: RegionTable) -> None:
        """Take SET_VRING_ADDR. Raises :class:`VhostUserError` for parts that are misaligned or outside the memory.

        Before any memory table has come the place cannot be judged; it is then judged when the ring is to run.
        """
        for name, user_address, align in (
            ("descriptor table", address.descriptor, DESCRIPTOR_TABLE_ALIGN),
            ("available ring", address.available, AVAIL_RING_ALIGN),
            ("used ring", address.used, USED_RING_ALIGN),
        ):
            if user_address % align:
                raise VhostUserError(f"{name} of queue {self.index} at {user_address:#x} is not {align}-byte aligned")
            if table.regions and table.translate_user(user_address, 1) is None:
                raise VhostUserError(f"{name} of queue {self.index} at {user_address:#x} is outside the guest's memory")
        self.address = address

    def is_at(self, address: VringAddress) -> bool:
        """Return whether the ring was told the same three addresses before, whatever else ``address`` says."""
        mine = self.address
        return mine is not None and (mine.descriptor, mine.available, mine.used) == (
            address.descriptor,
            address.available,
            address.used,
        )

    @property
    def is_wanted(self) -> bool:
        """Whether the front-end wants the ring to run and has said all that it takes."""
        return self.started and self.enabled and not self.broken and self.size > 0 and self.address is not None

    def place(self, table: RegionTable) -> RingPlace:
        """Return where the ring lies.

        Raises:
            VhostUserError: part of it lies outside the memory, or straddles two regions.
        """
        assert self.address is not None
        parts: list[FileRange] = []
        for name, user_address, length in (
            ("descriptor table", self.address.descriptor, descriptor_table_bytes(self.size)),
            ("available ring", self.address.available, avail_ring_bytes(self.size)),
            ("used ring", self.address.used, used_ring_bytes(self.size)),
        ):
            part = table.translate_user(user_address, length)
            if part is None:
                raise VhostUserError(
                    f"{name} of queue {self.index}, {length} bytes at {user_address:#x}, is not in one memory region"
                )
            parts.append(part)
        return RingPlace(size=self.size, descriptor=parts[0], available=parts[1], used=parts[2])

    def reset(self) -> None:
        """Forget everything the front-end said, as after RESET_DEVICE."""
        assert not self.running
        self.size, self.base, self.address = 0, 0, None
        self.started = self.enabled = self.broken = False
        self.parked, self.signal_first, self.resumes = None, False, False
