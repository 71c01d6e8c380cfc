"""The memory that both halves share, and the queues in it: the driver's half and the device's over the same bytes."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from guest.virtqueue.virtqueue import Buffer, DriverVirtqueue, IndirectTables
from guest.virtqueue.virtqueue_formats import open_virtqueue as open_driver
from host.ring.service_state import TRANSITIONS, ServiceEvent, ServiceState
from host.virtqueue.virtqueue import DeviceVirtqueue, RingFeatures
from host.virtqueue.virtqueue_formats import open_virtqueue as open_device
from protocol.errors import VirtqueueError
from protocol.memory import FileRange
from protocol.ring_formats import RingLayout
from protocol.virtio_balloon import BalloonQueue
from protocol.virtio_ring import DESCRIPTOR_SIZE
from scripts.check.ownership.page_owners import PageOwners
from scripts.check.ownership.page_state import PageEvent
from scripts.check.ownership.pages import Pages

BASE: Final = 0x4000_0000
"""Guest address of the shared memory, far above the pages that are lent."""

REGION: Final = 1
"""Its number in the memory table."""

QUEUES: Final = (BalloonQueue.INFLATE, BalloonQueue.DEFLATE, BalloonQueue.FREE_PAGE, BalloonQueue.REPORTING)
RING_SIZE: Final = 8
TABLE_CAPACITY: Final = 4
_AREA: Final = 2048
"""Bytes of a queue: its ring, and its indirect tables in the second half."""

BUFFERS: Final = BASE + _AREA * len(QUEUES)
"""The driver's buffers: page frame numbers, then two command ids."""
SHARED_BYTES: Final = _AREA * len(QUEUES) + 4096


class SharedMemory:
    """Ring memory and the driver's buffers. Guest pages have no content: what counts is who may change it."""

    def __init__(self) -> None:
        self.bytes = bytearray(SHARED_BYTES)

    def read(self, address: int, length: int) -> bytes:
        """Return what is at a guest address. Raises :class:`VirtqueueError` where there is nothing."""
        start = address - BASE
        if start < 0 or start + length > SHARED_BYTES:
            raise VirtqueueError(f"{length} bytes at guest address {address:#x} are not shared memory")
        return bytes(self.bytes[start : start + length])

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at a guest address."""
        start = address - BASE
        assert 0 <= start <= start + len(data) <= SHARED_BYTES, hex(address)
        self.bytes[start : start + len(data)] = data


class Loan(NamedTuple):
    """The pages of one chain. A hint is for the round ``command_id``, anything else for 0."""

    pages: tuple[Pages, ...]
    command_id: int = 0


class Service:
    """The device's half of a queue from the start of its ring to the stop, and who has the ring.

    ``lent`` has the pages of each chain by its head.
    """

    def __init__(self, ring: DeviceVirtqueue, lent: dict[int, Loan]) -> None:
        self.ring = ring
        self.lent = lent
        self.state = ServiceState.IDLE

    @property
    def has_worker(self) -> bool:
        """Whether a worker has the ring (``HAS_WORKER``)."""
        state = self.state
        return state is ServiceState.WORKING or state is ServiceState.KICKED or state is ServiceState.STOPPING

    def move(self, event: ServiceEvent) -> None:
        """Go to the next state."""
        self.state = TRANSITIONS[self.state, event]


class SharedQueue:
    """One virtqueue of the balloon, of either format."""

    def __init__(self, memory: SharedMemory, queue: BalloonQueue, owners: PageOwners, *, packed: bool) -> None:
        self.queue = queue
        self._memory = memory
        self._owners = owners
        self._layout = RingLayout(RING_SIZE, packed)
        self._start = _AREA * QUEUES.index(queue)
        assert self._layout.bytes <= _AREA // 2
        self.waiting = 0
        """Used buffers that the driver has not collected."""
        self.renew()

    @property
    def ring_parts(self) -> list[FileRange]:
        """Where the ring lies."""
        places = zip(self._layout.offsets, self._layout.lengths, strict=True)
        return [FileRange(REGION, self._start + offset, length) for offset, length in places]

    def renew(self) -> None:
        """Begin anew, as after a reset: an empty ring."""
        self._memory.bytes[self._start : self._start + _AREA] = bytes(_AREA)
        self.lent: dict[int, Loan] = {}
        self.waiting = 0
        first_table = BASE + self._start + _AREA // 2
        size = DESCRIPTOR_SIZE * TABLE_CAPACITY
        tables = IndirectTables(
            addresses=tuple(first_table + size * number for number in range(RING_SIZE)), capacity=TABLE_CAPACITY
        )
        ring = self._layout.open(*self._parts())
        self.driver: DriverVirtqueue = open_driver(ring, event_idx=True, tables=tables, write_guest=self._memory.write)
        self.start(0)

    def start(self, base: int) -> None:
        """Have the device serve the ring from ``base`` on. A first look that finds it empty is not a step."""
        features = RingFeatures(event_idx=True, indirect_desc=True, packed=self._layout.packed)
        ring = open_device(self._layout.open(*self._parts()), base, features, self._memory.read)
        self.service = Service(ring, self.lent)
        if ring.enable_notification():
            self.service.move(ServiceEvent.KICK)

    def _parts(self) -> tuple[memoryview, memoryview, memoryview]:
        whole = memoryview(self._memory.bytes)[self._start : self._start + _AREA // 2]
        descriptor, driver, device = self._layout.offsets
        return whole[descriptor:], whole[driver:], whole[device:]

    # --- The driver's ---

    def post(
        self,
        event: PageEvent,
        pages: tuple[Pages, ...],
        readable: Sequence[Buffer],
        writable: Sequence[Buffer],
        *,
        command_id: int = 0,
    ) -> int:
        """Lend ``pages`` to the device in a request; return its head. The device is kicked if it asked for that."""
        self._owners.note(event, *pages)
        if command_id in self._owners.rounds_over:
            self._owners.note(PageEvent.DONE, *pages)  # the driver has not seen DONE yet
        head = self.driver.add(readable, writable)
        self.lent[head] = Loan(pages, command_id)
        if self.driver.needs_kick():
            self.service.move(ServiceEvent.KICK)
        return head

    def collect(self) -> list[int]:
        """Return the heads that the device has used since this was last asked."""
        found = list[int]()
        while (used := self.driver.get_used()) is not None:
            found.append(used.head)
        self.waiting = 0
        self.driver.enable_interrupt()
        return found

    # --- The device's ---

    def give_back(self, service: Service, head: int, length: int) -> None:
        """Acknowledge a chain: its pages are the driver's from now on."""
        if head not in service.lent:
            raise VirtqueueError(f"the device gives back {head}, which was never made available")
        loan = service.lent[head]
        if loan.command_id not in self._owners.rounds_over:  # else the driver may have released the pages before
            self._owners.note(PageEvent.ACKNOWLEDGE, *loan.pages)
        if service is not self.service:
            return  # a device that was late: the ring is another by now
        service.ring.add_used(head, length)
        service.ring.needs_notification()
        self.waiting += 1
