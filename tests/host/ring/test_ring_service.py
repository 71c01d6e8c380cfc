"""One running queue with its worker in the test's hand: who looks at the ring when, and how it is stopped."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import pytest

import host.ring.hand_over
from host.balloon.offered_features import OFFERED
from host.balloon.virtio_balloon import VirtioBalloon
from host.memory.guest_memory import GuestMemory
from host.ring.eventfd_signal import EventfdSignal
from host.ring.kick_file import KickFile
from host.ring.opened_ring import open_ring
from host.ring.queue_files import CallFile, QueueFiles
from host.ring.ring_service import CHAINS_PER_TURN, RingService
from host.ring.turn import ServedChain, Turn
from host.vhost_user.actions import StartRing
from host.virtqueue.ring_place import RingPlace
from host.virtqueue.virtqueue import DeviceVirtqueue, ReadGuest, RingFeatures
from host.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VhostUserError
from protocol.memory import PAGE_SIZE, FileRange, GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.ring_formats import Ring
from protocol.virtio_balloon import BalloonQueue
from protocol.virtio_ring import avail_ring_bytes, descriptor_table_bytes, used_ring_bytes
from tests.harness.processes import DEADLINE
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, QUEUE_SIZE, REPORTING, USER_BASE, Ram, TestQueue


class HandExecutor(Executor):
    """Runs what it was given when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        self.waiting.append(lambda: fn(*arguments, **named))
        return Future()

    def run_one(self) -> None:
        """Do one worker's turn, here and now."""
        self.waiting.pop(0)()


def _open_plainly(action: StartRing, ring: Ring, read_guest: ReadGuest) -> DeviceVirtqueue:
    return open_virtqueue(ring, action.base, action.features, read_guest)


class Record:
    """Notes chains, and has the event loop append those of each hand-over to ``batches``."""

    def __init__(self) -> None:
        self.batches: list[list[ServedChain]] = []
        self._chains: list[ServedChain] = []

    def chain_served(self, chain: ServedChain) -> None:
        self._chains.append(chain)

    def pass_on(self) -> Callable[[], None]:
        chains, self._chains = self._chains, []
        return lambda: self.batches.append(chains)

    def take_rest(self) -> None:
        self.pass_on()()


class Bench:
    """A guest's memory with one reporting queue, the device's side of it, and its files."""

    def __init__(self) -> None:
        self.ram = Ram()
        self.memory = GuestMemory()
        region = MemoryRegion(
            guest_address=GuestAddress(GUEST_BASE),
            size=self.ram.size,
            user_address=UserAddress(USER_BASE),
            mmap_offset=0,
        )
        self.memory.replace(RegionTable([region]), [os.dup(self.ram.fd)])
        self.queue = TestQueue(self.ram, REPORTING, OFFERED)
        self.files = QueueFiles(kick=KickFile(os.dup(self.queue.kick_fd)), call=CallFile(os.dup(self.queue.call_fd)))
        self.executor = HandExecutor()
        self.alone = False
        self.large_chains = threading.Lock()
        self.turns: list[Turn] = []
        self.record = Record()
        self.balloon = VirtioBalloon(features=OFFERED)
        self.base = 0

    def start(self, queue: BalloonQueue = BalloonQueue.REPORTING, *, resumes: bool = False) -> RingService:
        """Let the ring run as ``queue``, from its beginning or from where it stopped. Needs a running event loop."""
        at = self.queue.offset
        place = RingPlace(
            size=QUEUE_SIZE,
            descriptor=FileRange(0, at, descriptor_table_bytes(QUEUE_SIZE)),
            available=FileRange(0, at + 0x4000, avail_ring_bytes(QUEUE_SIZE)),
            used=FileRange(0, at + 0x6000, used_ring_bytes(QUEUE_SIZE)),
        )
        action = StartRing(
            index=REPORTING,
            queue=queue,
            place=place,
            resumes=resumes,
            base=self.base if resumes else 0,
            features=RingFeatures(event_idx=True, indirect_desc=True),
        )
        service = RingService(
            action,
            open_ring(action, self.memory, _open_plainly),
            self.files,
            self.memory,
            self.balloon,
            self.executor,
            lambda: self.alone,
            lambda _, turn: self.turns.append(turn),
            self.record,
            self.large_chains,
        )
        service.start()
        return service

    def report(self) -> None:
        """Make one page available, without a kick."""
        self.queue.driver.add((), [(GUEST_BASE + DATA_AT, PAGE_SIZE)])

    @property
    def chains(self) -> list[ServedChain]:
        """The chains that the event loop has heard of."""
        return [chain for batch in self.record.batches for chain in batch]

    @property
    def served(self) -> int:
        """How many chains the event loop has heard of."""
        return len(self.chains)

    def close(self) -> None:
        self.files.close()
        self.memory.close()
        self.queue.close()
        self.ram.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


async def settle() -> None:
    """Let the event loop handle what is ready."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_ring_is_looked_at_once_when_it_starts(bench: Bench) -> None:
    bench.report()
    service = bench.start()
    assert len(bench.executor.waiting) == 1
    bench.executor.run_one()
    await settle()
    assert (bench.served, bench.executor.waiting) == (1, [])
    assert await service.stop() == 1


@pytest.mark.asyncio
async def test_queue_never_has_two_workers(bench: Bench) -> None:
    service = bench.start()
    for _ in range(10):
        bench.report()
        bench.queue.kick()
        await settle()
        assert len(bench.executor.waiting) == 1
    bench.executor.run_one()
    await settle()
    assert bench.served == 10
    while bench.executor.waiting:
        bench.executor.run_one()
        await settle()
    assert await service.stop() == 10


@pytest.mark.asyncio
async def test_worker_gives_way_after_its_share(bench: Bench) -> None:
    for _ in range(CHAINS_PER_TURN + 3):
        bench.report()
    service = bench.start()
    bench.executor.run_one()
    await settle()
    assert bench.served == CHAINS_PER_TURN
    assert len(bench.executor.waiting) == 1  # at the end of the line
    bench.executor.run_one()
    await settle()
    assert bench.served == CHAINS_PER_TURN + 3
    await service.stop()


@pytest.mark.asyncio
async def test_worker_that_is_alone_goes_on_until_the_loop_wants_something(bench: Bench) -> None:
    bench.alone = True
    for _ in range(3 * CHAINS_PER_TURN):
        bench.report()
    service = bench.start()
    bench.executor.run_one()
    await settle()
    assert bench.served == 3 * CHAINS_PER_TURN
    assert not bench.executor.waiting
    for _ in range(2 * CHAINS_PER_TURN):
        bench.report()
    service.kick()
    settled = asyncio.create_task(service.settled())
    await settle()
    bench.executor.run_one()
    await settle()
    assert settled.done()
    assert bench.served == 4 * CHAINS_PER_TURN
    bench.executor.run_one()
    await settle()
    assert bench.served == 5 * CHAINS_PER_TURN
    await service.stop()


@pytest.mark.asyncio
async def test_worker_waits_for_a_loop_that_is_late(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.ring.hand_over, "HAND_OVER_INTERVAL", 0.0)
    bench.alone = True
    for _ in range(3 * CHAINS_PER_TURN):
        bench.report()
    service = bench.start()
    for turn in range(3):
        bench.executor.run_one()  # nothing is taken in meanwhile
        await settle()
        assert bench.served == (turn + 1) * CHAINS_PER_TURN
        assert [len(batch) for batch in bench.record.batches[2 * turn :]] == [1, CHAINS_PER_TURN - 1]
    bench.executor.run_one()
    await settle()
    await service.stop()


@pytest.mark.asyncio
async def test_kicks_that_bring_nothing_do_not_keep_a_worker(bench: Bench) -> None:
    """A descriptor that is readable for ever looks like a burst of kicks without an end."""
    assert bench.files.kick is not None
    bench.files.kick.close()
    bench.files.kick = KickFile(os.eventfd(1 << 30, os.EFD_SEMAPHORE | os.EFD_NONBLOCK))
    service = bench.start()
    bench.executor.run_one()
    await settle()
    assert len(bench.executor.waiting) <= 1
    while bench.executor.waiting and len(bench.turns) < 5:
        bench.executor.run_one()
        await settle()
    stopping = asyncio.create_task(service.stop())
    while not stopping.done():
        if bench.executor.waiting:
            bench.executor.run_one()
        await settle()
    assert await stopping == 0


@pytest.mark.asyncio
async def test_stopping_waits_for_the_worker_and_may_be_asked_twice(bench: Bench) -> None:
    bench.report()
    service = bench.start()
    first = asyncio.create_task(service.stop())
    second = asyncio.create_task(service.stop())
    await settle()
    first.cancel()
    await settle()
    assert (first.cancelled(), second.done()) == (True, False)
    bench.executor.run_one()
    assert await second == 0  # told to stop before it took the chain
    assert await service.stop() == 0
    bench.queue.kick()
    await settle()
    assert bench.executor.waiting == []


@pytest.mark.asyncio
async def test_broken_ring_is_not_looked_at_again(bench: Bench) -> None:
    bench.queue.ring.avail[1] = QUEUE_SIZE + 1
    service = bench.start()
    bench.executor.run_one()
    await settle()
    assert service.broken
    assert bench.turns[-1].broken is not None
    bench.queue.kick()
    await settle()
    assert bench.executor.waiting == []
    await service.stop()


@pytest.mark.asyncio
async def test_kick_that_cannot_be_waited_for_leaves_no_mapping(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", no_room)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(VhostUserError, match="cannot be waited for"):
        bench.start()
    assert len(os.listdir("/proc/self/fd")) == before
    assert bench.executor.waiting == []


# -- the driver's interrupt -------------------------------------------------------------------------------------------


class Gullible:
    """A kernel without asynchronous requests, on which every descriptor is found ready: as our look finds it when the
    front-end fills the counter right after it."""

    def poll(self, _timeout: int) -> list[tuple[int, int]]:
        return [(0, 0)]

    def signal(self) -> bool:
        return False


@pytest.mark.asyncio
async def test_front_end_that_fills_its_counter_holds_no_worker_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a few of them, five queues each, would keep every worker."""
    full = os.eventfd(0)
    bench.files.call, old = CallFile(full), bench.files.call
    assert old is not None
    old.close()
    bench.files.call.signal()
    if os.eventfd_read(full) and not EventfdSignal(full).signal():
        pytest.skip("no asynchronous requests here")
    os.eventfd_write(full, 2**64 - 3)
    monkeypatch.setattr(bench.files.call, "_poll", Gullible())
    bench.report()
    service = bench.start()
    await asyncio.wait_for(asyncio.to_thread(bench.executor.run_one), DEADLINE)
    await settle()
    assert bench.served == 1
    assert os.eventfd_read(full) == 2**64 - 1
    await service.stop()


def distrust(monkeypatch: pytest.MonkeyPatch, file: CallFile) -> None:
    """Have the signals of ``file`` wait where its counter is full."""
    monkeypatch.setattr(file, "_eventfd", Gullible())
    monkeypatch.setattr(file, "_poll", Gullible())


@pytest.mark.asyncio
async def test_front_end_that_fills_its_counter_holds_no_stop_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.files.call is not None
    bench.files.call.close()
    full = os.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    bench.files.call = CallFile(full)
    distrust(monkeypatch, bench.files.call)
    bench.report()
    service = bench.start()
    worker = asyncio.create_task(asyncio.to_thread(bench.executor.run_one))
    await asyncio.wait([worker], timeout=0.05)
    assert not worker.done()  # waits in write()
    assert await asyncio.wait_for(service.stop(), 5) == 1
    await worker
    assert os.eventfd_read(full) == 1  # the interrupt came in the end


@pytest.mark.asyncio
async def test_front_end_that_fills_the_counter_of_its_dirty_log_holds_no_stop_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    file = CallFile(full)
    distrust(monkeypatch, file)
    bench.files.relieve_log = file.relieve
    bench.report()
    service = bench.start()
    service.set_on_write(lambda _part, _offset, _length: file.signal())
    worker = asyncio.create_task(asyncio.to_thread(bench.executor.run_one))
    await asyncio.wait([worker], timeout=0.05)
    assert not worker.done()  # waits in write()
    assert await asyncio.wait_for(service.stop(), 5) == 1
    await worker
    file.close()
