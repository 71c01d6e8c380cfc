"""Limits of one queue: spurious kicks, and a chain that takes too long."""

import asyncio
import errno
import os
from collections.abc import Iterator

import pytest

import host.ring.kick_watch
import host.ring.ring_service
from host.ring.kick_file import KickFile
from protocol.memory import PAGE_SIZE
from tests.harness.processes import DEADLINE
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE
from tests.host.ring.gate import gated_discard
from tests.host.ring.test_ring_service import Bench, settle


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.mark.asyncio
async def test_kicks_that_waited_in_a_pipe_are_one_reason_to_look(bench: Bench) -> None:
    assert bench.files.kick is not None
    bench.files.kick.close()
    reading, kicks = os.pipe()
    bench.files.kick = KickFile(reading)
    os.write(kicks, bytes(8 * 50))
    service = bench.start()
    bench.executor.run_one()
    await settle()
    assert bench.executor.waiting == []
    bench.report()
    os.write(kicks, bytes(8))
    await settle()
    bench.executor.run_one()
    await settle()
    assert bench.served == 1
    assert await service.stop() == 1
    os.close(kicks)


@pytest.mark.parametrize("pause", [0.0, 3600.0])
@pytest.mark.asyncio
async def test_kicks_that_bring_nothing_are_not_looked_at_all_the_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    monkeypatch.setattr(host.ring.ring_service, "SPURIOUS_KICK_BACKOFF", pause)
    assert bench.files.kick is not None
    bench.files.kick.close()
    bench.files.kick = KickFile(os.eventfd(1 << 30, os.EFD_SEMAPHORE | os.EFD_NONBLOCK))
    service = bench.start()
    for _ in range(3):
        bench.executor.run_one()
        for _ in range(100):
            await settle()
        assert len(bench.executor.waiting) == (1 if pause == 0 else 0)
        service.kick()  # by message, and so with a reason
        assert len(bench.executor.waiting) == 1
    bench.report()
    bench.executor.run_one()
    await settle()
    assert (bench.served, len(bench.executor.waiting)) == (1, 1)  # a driver at work is not kept waiting
    bench.executor.run_one()
    await service.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize("drain", [True, False])
async def test_chain_that_takes_too_long_is_put_back_when_its_ring_is_to_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, drain: bool
) -> None:
    monkeypatch.setattr(host.ring.ring_service, "STOP_PATIENCE", 0.0 if drain else DEADLINE)
    gate = gated_discard(monkeypatch)
    apart = DATA_AT + 2 * PAGE_SIZE
    for at in (DATA_AT, apart):
        bench.ram.touch(at, PAGE_SIZE)
    pages = [(GUEST_BASE + at, PAGE_SIZE) for at in (DATA_AT, apart)]
    bench.queue.driver.add((), pages)
    service = bench.start()
    worker = asyncio.create_task(asyncio.to_thread(bench.executor.run_one))
    await asyncio.to_thread(gate.entered.wait, DEADLINE)
    stopping = asyncio.create_task(service.stop(drain=drain))
    await settle()
    gate.opened.set()
    await worker
    assert await stopping == bench.base
    assert (bench.served, bench.queue.ring.used[1]) == (0, 0)
    assert bench.ram.pages() == {apart}
    service = bench.start(resumes=True)
    bench.executor.run_one()
    await settle()
    assert (bench.served, bench.queue.ring.used[1], bench.ram.pages()) == (1, 1, set())
    assert await service.stop() == 1


@pytest.mark.asyncio
async def test_kick_descriptor_that_cannot_be_watched_is_watched_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The turn that it follows is told all the same, and who waits for its end is woken."""
    monkeypatch.setattr(host.ring.kick_watch, "WATCH_RETRY", 0.0)
    loop = asyncio.get_running_loop()
    service = bench.start()
    bench.report()
    settled = asyncio.create_task(service.settled())
    with monkeypatch.context() as short:
        short.setattr(loop, "add_reader", _no_more_watches)
        bench.executor.run_one()
        await settle()
        assert (bench.served, settled.done()) == (1, True)
        bench.report()
        bench.queue.kick()
        await settle()
        assert bench.executor.waiting == []
    await settle()
    bench.executor.run_one()
    await settle()
    assert bench.served == 2
    assert [record.getMessage() for record in caplog.records] == [
        "the kick descriptor of queue 2 cannot be waited for now; it is tried again"
    ]
    await service.stop()


def _no_more_watches(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.asyncio
async def test_kick_by_message_while_a_worker_reads_the_descriptor_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring was left alone until a kick, and the one in the pipe was taken by another reader."""
    assert bench.files.kick is not None
    bench.files.kick.close()
    reading, kicks = os.pipe()
    bench.files.kick = KickFile(reading)
    service = bench.start()
    bench.executor.run_one()
    await settle()
    bench.base = await service.stop()
    bench.files.token += 1  # not as it was left
    service = bench.start(resumes=True)
    bench.report()
    os.write(kicks, bytes(8))
    await settle()
    assert len(bench.executor.waiting) == 1

    def take_too_late(_kick: KickFile) -> bool:
        service.kick()
        return False

    with monkeypatch.context() as slow:
        slow.setattr(KickFile, "take", take_too_late)
        bench.executor.run_one()
    await settle()
    while bench.executor.waiting:
        bench.executor.run_one()
        await settle()
    assert bench.served == 1
    await service.stop()
    os.close(kicks)


def offer_large_chain(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a chain available that counts as large: two pages."""
    monkeypatch.setattr(host.ring.ring_service, "LARGE_CHAIN", 1)
    bench.ram.touch(DATA_AT, 2 * PAGE_SIZE)
    bench.queue.driver.add((), [(GUEST_BASE + DATA_AT + at, PAGE_SIZE) for at in (0, PAGE_SIZE)])


@pytest.mark.asyncio
async def test_large_chain_waits_for_the_one_in_hand_of_the_same_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_large_chain(bench, monkeypatch)
    service = bench.start()
    bench.large_chains.acquire()
    worker = asyncio.create_task(asyncio.to_thread(bench.executor.run_one))
    await asyncio.wait([worker], timeout=3 * host.ring.ring_service.RELIEF_INTERVAL)
    assert not worker.done()
    assert len(bench.ram.pages() & {DATA_AT, DATA_AT + PAGE_SIZE}) == 2
    bench.large_chains.release()
    await worker
    await settle()
    assert (bench.served, bench.ram.pages()) == (1, set())
    assert not bench.large_chains.locked()
    await service.stop()


@pytest.mark.asyncio
async def test_large_chain_that_waits_is_put_back_when_its_ring_is_to_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_large_chain(bench, monkeypatch)
    service = bench.start()
    bench.large_chains.acquire()
    worker = asyncio.create_task(asyncio.to_thread(bench.executor.run_one))
    assert await asyncio.wait_for(service.stop(), DEADLINE) == 0
    await worker
    assert (bench.served, bench.queue.ring.used[1]) == (0, 0)
    bench.large_chains.release()


@pytest.mark.asyncio
async def test_small_chain_waits_for_no_large_one(bench: Bench) -> None:
    bench.report()
    service = bench.start()
    bench.large_chains.acquire()
    bench.executor.run_one()
    await settle()
    assert bench.served == 1
    await service.stop()


@pytest.mark.parametrize("kind", ["eventfd", "pipe"])
@pytest.mark.asyncio
async def test_kick_from_before_does_not_bring_back_a_ring_that_has_changed(bench: Bench, kind: str) -> None:
    kicks = os.dup(bench.queue.kick_fd)
    if kind == "pipe":
        assert bench.files.kick is not None
        bench.files.kick.close()
        os.close(kicks)
        reading, kicks = os.pipe()
        bench.files.kick = KickFile(reading)

    async def work() -> None:
        await settle()
        while bench.executor.waiting:
            bench.executor.run_one()
            await settle()

    service = bench.start()
    await work()
    bench.base = await service.stop()
    bench.files.token += 1  # not as it was left
    os.write(kicks, (1).to_bytes(8, "little"))
    service = bench.start(resumes=True)
    bench.report()
    await work()
    assert bench.served == 0
    os.write(kicks, (1).to_bytes(8, "little"))
    await work()
    assert bench.served == 1
    await service.stop()
    os.close(kicks)
