"""Reclaiming with a floor, a pace, and a stop when the guest reads back what it gave up."""

import asyncio

import pytest

import host.control.reclaim
from host.control.reclaim import pace_step
from host.control.reclaim_progress import ReclaimLimits, ReclaimMethod, StoppedBy
from protocol.errors import BalloonError
from tests.host.control.machine import MIB, FakeMachine
from tests.host.control.test_reclaim import BOTH, SPARE, STATS_VQ, inflating


@pytest.mark.asyncio
async def test_floor_is_left_to_the_guest() -> None:
    machine = FakeMachine(STATS_VQ)
    targets = inflating(machine)
    result = await machine.control.reclaim(limits=ReclaimLimits(floor=200 * MIB))
    assert (result.complete, result.stopped_by, targets[0]) == (True, None, 56)
    result = await machine.control.reclaim(limits=ReclaimLimits(floor=256 * MIB))
    assert (result.complete, result.offered_bytes) == (True, 0)


@pytest.mark.asyncio
async def test_pace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The balloon grows by so much at a time, and the next step waits; what was reached is told on the way."""
    monkeypatch.setattr(host.control.reclaim, "STEP_SECONDS", 0.02)
    machine = FakeMachine(STATS_VQ)
    targets = inflating(machine)
    begin = asyncio.get_running_loop().time()
    result = await machine.control.reclaim(limits=ReclaimLimits(pace=1800 * MIB))
    assert asyncio.get_running_loop().time() - begin >= 3 * 0.02
    assert (result.complete, targets[:4]) == (True, [36, 72, 108, SPARE])
    told = machine.fields("reclaim_progress")
    assert told[0] == {"method": "inflate", "offered_bytes": 36 * MIB, "discarded_bytes": 36 * MIB}
    assert len(told) >= 2


@pytest.mark.asyncio
async def test_refaults_end_a_reclaim() -> None:
    machine = FakeMachine(STATS_VQ)
    targets = inflating(machine)
    faults = iter((1000, 1001, 1064, 1200))

    def answer() -> None:
        machine.answer(memfree=machine.free, memtot=machine.memory_bytes, majflt=next(faults), swap_in=0)

    machine.stats.on_give_back = answer
    result = await machine.control.reclaim(limits=ReclaimLimits(stop_on_refault=True))
    await asyncio.sleep(0)
    assert (result.complete, result.stopped_by) == (False, StoppedBy.REFAULT)
    assert targets == [9, 18, 27, 0]
    assert machine.fields("reclaim")[0]["stopped_by"] == "refault"


@pytest.mark.asyncio
async def test_pause_between_steps_ends_with_the_reclaim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.reclaim, "STEP_SECONDS", 60.0)
    machine = FakeMachine(STATS_VQ)
    inflating(machine)
    follow, begun = machine.on_config, asyncio.Event()

    def begin() -> None:
        follow()
        begun.set()

    machine.on_config = begin
    asking = asyncio.create_task(machine.control.reclaim(limits=ReclaimLimits(pace=MIB)))
    await asyncio.wait_for(begun.wait(), 5)
    machine.control.set_num_pages(0)
    result = await asyncio.wait_for(asking, 5)
    assert (result.complete, result.stopped_by) == (False, StoppedBy.GUEST)


@pytest.mark.asyncio
async def test_hints_have_no_limits() -> None:
    machine = FakeMachine(BOTH)
    with pytest.raises(BalloonError, match="need a reclaim by inflating"):
        await machine.control.reclaim("hint", ReclaimLimits(floor=1))
    inflating(machine)
    assert (await machine.control.reclaim(limits=ReclaimLimits(floor=1))).method is ReclaimMethod.INFLATE


def test_step_takes_no_more_than_the_pace_allows() -> None:
    assert pace_step(1) == (1, 4096.0)
    assert pace_step(4096) == (1, 1.0)
    assert pace_step(16384) == (1, 0.25)
    assert pace_step(400 * MIB) == (25600, 0.25)
    for pace in (3, 17000, 10**9 + 7, (1 << 64) - 1):
        pages, seconds = pace_step(pace)
        assert pages * 4096 <= pace * seconds * (1 + 1e-9)
