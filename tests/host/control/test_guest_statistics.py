"""A guest's statistics: asked for on demand and at an interval."""

import asyncio
from typing import Any

import pytest

import host.control.guest_statistics
from protocol.errors import BalloonError
from protocol.virtio_balloon import BalloonQueue
from tests.host.control.machine import FakeMachine

STATS_VQ = 1 << 1


@pytest.mark.asyncio
async def test_statistics_are_asked_for_and_fresh() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.answer(memfree=1)  # the first buffer, which comes by itself
    assert machine.control.last_statistics is not None
    machine.stats.on_give_back = lambda: machine.answer(memfree=2, majflt=3)
    statistics = await machine.control.statistics()
    assert statistics.values == {"memfree": 2, "majflt": 3}
    assert machine.control.last_statistics is statistics
    assert 0 <= statistics.age < 5
    assert machine.stats.given_back == 1


@pytest.mark.asyncio
async def test_answer_serves_every_request() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.stats.on_give_back = lambda: None
    asked = [asyncio.create_task(machine.control.statistics()) for _ in range(3)]
    await asyncio.sleep(0)
    machine.answer(avail=9)
    assert [(await each).values for each in asked] == [{"avail": 9}] * 3


@pytest.mark.asyncio
async def test_missing_statistics_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.guest_statistics, "STATISTICS_TIMEOUT", 0.01)
    machine = FakeMachine(STATS_VQ)
    machine.stats.on_give_back = lambda: None

    async def failure() -> str:
        with pytest.raises(BalloonError) as caught:
            await machine.control.statistics()
        return str(caught.value)

    assert "within" in await failure()
    machine.stats.running = False
    assert "does not run" in await failure()
    del machine.queues[BalloonQueue.STATS]
    assert "does not run" in await failure()
    machine.balloon.features = 0
    assert "not negotiated" in await failure()
    machine.control.close()
    assert "has gone" in await failure()


@pytest.mark.asyncio
async def test_statistics_at_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(STATS_VQ)
    thrice = asyncio.Event()

    def answer() -> None:
        machine.answer(memfree=machine.stats.given_back)
        if machine.stats.given_back == 3:
            thrice.set()

    machine.stats.on_give_back = answer
    machine.control.set_statistics_interval(0.001)
    await asyncio.wait_for(thrice.wait(), 5)
    machine.control.set_statistics_interval(0)
    before = machine.stats.given_back
    await asyncio.sleep(0.01)
    assert machine.stats.given_back == before
    machine.stats.running = False  # a queue that does not run is left alone, and asked again when it does
    machine.control.set_statistics_interval(0.001)
    await asyncio.sleep(0.01)
    machine.control.close()
    assert machine.stats.given_back == before


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
@pytest.mark.asyncio
async def test_invalid_intervals_are_refused(seconds: Any) -> None:
    with pytest.raises(BalloonError, match="cannot be taken"):
        FakeMachine(STATS_VQ).control.set_statistics_interval(seconds)
