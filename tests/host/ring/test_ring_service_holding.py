"""Chains that are held, and what the event loop may conclude from a worker that was seen between two turns."""

import asyncio
import struct
from collections.abc import Iterator

import pytest

from host.ring.ring_service import RingService
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonQueue
from tests.harness.processes import DEADLINE
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE
from tests.host.ring.gate import gated_discard
from tests.host.ring.test_ring_service import Bench, settle

BUFFER_AT = DATA_AT - PAGE_SIZE
STATS, FREE_PAGE = BalloonQueue.STATS, BalloonQueue.FREE_PAGE


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def offer_statistics(bench: Bench, free: int) -> None:
    """Make one statistics buffer available, without a kick."""
    data = struct.pack("<HQ", 4, free)
    bench.ram.map[BUFFER_AT : BUFFER_AT + len(data)] = data
    bench.queue.driver.add([(GUEST_BASE + BUFFER_AT, len(data))], ())


async def work(bench: Bench) -> None:
    """Let workers do all that there is to do."""
    while bench.executor.waiting:
        bench.executor.run_one()
        await settle()


def answers(bench: Bench) -> list[int]:
    """Return the free memory of each statistics buffer that the event loop has heard of."""
    found: list[int] = []
    for chain in bench.chains:
        assert chain.outcome.statistics is not None
        found.append(chain.outcome.statistics.values["memfree"])
    return found


async def held(bench: Bench, *, resumes: bool = False) -> RingService:
    """Return a statistics queue that holds one buffer."""
    if not resumes:
        offer_statistics(bench, 100)
    service = bench.start(STATS, resumes=resumes)
    await work(bench)
    return service


@pytest.mark.asyncio
async def test_statistics_are_told_and_their_buffer_is_kept(bench: Bench) -> None:
    service = await held(bench)
    assert answers(bench) == [100]
    assert bench.queue.ring.used[1] == 0
    bench.queue.kick()
    await settle()
    await work(bench)
    assert (answers(bench), bench.queue.ring.used[1]) == ([100], 0)
    await service.stop()


@pytest.mark.asyncio
async def test_held_buffer_given_back_asks_for_new_statistics_once(bench: Bench) -> None:
    service = await held(bench)
    for number in range(5):
        assert service.give_back_held()
        assert service.give_back_held()  # one request, however often it is made
        await work(bench)
        bench.queue.collect()
        assert bench.queue.ring.used[1] == number + 1
        assert service.give_back_held()  # the driver owes an answer: there is nothing to give back
        await work(bench)
        offer_statistics(bench, number)
        bench.queue.kick()
        await settle()
        await work(bench)
        assert bench.queue.ring.used[1] == number + 1
    assert answers(bench) == [100, 0, 1, 2, 3, 4]
    await service.stop()


@pytest.mark.asyncio
async def test_second_buffer_sends_the_first_one_back(bench: Bench) -> None:
    service = await held(bench)
    offer_statistics(bench, 200)
    bench.queue.kick()
    await settle()
    await work(bench)
    assert answers(bench) == [100, 200]
    assert bench.queue.collect() == [0]
    assert await service.stop() == 1


@pytest.mark.asyncio
async def test_driver_that_answers_at_once_is_not_asked_at_once(bench: Bench) -> None:
    """Giving each buffer back at once made ten thousand exchanges a second."""
    service = await held(bench)
    service.give_back_held()
    while bench.executor.waiting:
        bench.executor.run_one()
        if bench.queue.driver.get_used() is not None:
            offer_statistics(bench, 1)
            bench.queue.kick()
        await settle()
    assert answers(bench) == [100, 1]
    await service.stop()


@pytest.mark.asyncio
async def test_stopped_ring_is_not_written_and_its_buffer_is_found_again(bench: Bench) -> None:
    service = await held(bench)
    before = bytes(bench.queue.ring.used)
    bench.base = await service.stop()
    assert bench.base == 0
    assert not service.give_back_held()
    await work(bench)
    assert bytes(bench.queue.ring.used) == before
    service = await held(bench, resumes=True)
    assert answers(bench) == [100]  # the driver has said nothing new
    service.give_back_held()
    await work(bench)
    assert bench.queue.collect() == [0]
    assert await service.stop() == 1


@pytest.mark.asyncio
async def test_buffer_of_a_ring_that_goes_on_elsewhere_or_says_something_else_is_told(bench: Bench) -> None:
    service = await held(bench)
    bench.base = await service.stop()
    bench.ram.map[BUFFER_AT : BUFFER_AT + 10] = struct.pack("<HQ", 4, 300)
    service = await held(bench, resumes=True)
    assert answers(bench) == [100, 300]
    await service.stop()


@pytest.mark.asyncio
async def test_request_that_comes_before_the_kept_buffer_is_found_again_is_not_lost(bench: Bench) -> None:
    service = await held(bench)
    bench.base = await service.stop()
    service = bench.start(STATS, resumes=True)
    service.give_back_held()
    await work(bench)
    assert bench.queue.collect() == [0]
    offer_statistics(bench, 200)
    bench.queue.kick()
    await settle()
    await work(bench)
    assert answers(bench) == [100, 200]
    await service.stop()


@pytest.mark.asyncio
async def test_give_back_that_meets_a_stop_is_dropped(bench: Bench) -> None:
    service = await held(bench)
    service.give_back_held()
    stopping = asyncio.create_task(service.stop())
    await settle()
    await work(bench)
    assert await stopping == 0
    assert bench.queue.ring.used[1] == 0


@pytest.mark.asyncio
async def test_ring_whose_driver_left_is_not_written(bench: Bench) -> None:
    service = await held(bench)
    bench.base = await service.stop()
    bench.queue.ring.used[1] = 77  # the memory is something else by now
    for _ in range(2):  # what it finds is not what it left, however often it is stopped and goes on
        service = await held(bench, resumes=True)
        assert not service.give_back_held()
        await work(bench)
        assert bench.queue.ring.used[1] == 77
        await service.stop()


@pytest.mark.asyncio
async def test_ring_that_broke_keeps_its_held_chain(bench: Bench) -> None:
    service = await held(bench)
    bench.queue.ring.avail[1] = 1000
    bench.queue.kick()
    await settle()
    await work(bench)
    assert service.broken
    assert not service.give_back_held()
    await service.stop()
    assert bench.queue.ring.used[1] == 0


# -- hinting ----------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_end_of_a_round_waits_for_a_hinted_block_being_discarded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DONE must not be shown before the discard that is under way has ended, and no other may begin."""
    gate = gated_discard(monkeypatch)
    bench.ram.touch(DATA_AT, 2 * PAGE_SIZE)
    hinting = bench.balloon.hinting
    bench.ram.map[BUFFER_AT : BUFFER_AT + 4] = struct.pack("<I", hinting.start())
    bench.queue.driver.add([(GUEST_BASE + BUFFER_AT, 4)], ())
    for page in range(2):
        bench.queue.driver.add((), [(GUEST_BASE + DATA_AT + page * PAGE_SIZE, PAGE_SIZE)])
    service = bench.start(FREE_PAGE)
    worker = asyncio.create_task(asyncio.to_thread(bench.executor.run_one))
    await asyncio.to_thread(gate.entered.wait, DEADLINE)
    hinting.stop()
    settled = asyncio.create_task(service.settled())
    await settle()
    assert not settled.done()
    assert gate.discarded == []
    gate.opened.set()
    await settled
    hinting.done()
    await worker
    assert gate.discarded == [DATA_AT]
    assert bench.ram.pages() == {DATA_AT + PAGE_SIZE}
    assert bench.queue.ring.used[1] == 3  # all the same, every chain is acknowledged
    await service.stop()


@pytest.mark.asyncio
async def test_queue_at_rest_is_settled(bench: Bench) -> None:
    service = bench.start(FREE_PAGE)
    await work(bench)
    await asyncio.wait_for(service.settled(), DEADLINE)
    await service.stop()


@pytest.mark.asyncio
async def test_queue_that_is_set_up_anew_has_no_round(bench: Bench) -> None:
    hinting = bench.balloon.hinting
    hinting.take_command(hinting.start())
    service = bench.start(FREE_PAGE)
    assert not hinting.accepts()
    hinting.take_command(hinting.command_id)
    await work(bench)
    bench.base = await service.stop()
    service = bench.start(FREE_PAGE, resumes=True)
    assert hinting.accepts()  # the same driver goes on
    await work(bench)
    await service.stop()
