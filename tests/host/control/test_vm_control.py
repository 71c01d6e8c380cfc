"""The controls of one virtual machine: facts, sizes and statistics."""

import asyncio
from typing import Any

import pytest

import host.control.balloon_size
import host.control.guest_statistics
from host.control.controlled_vm import VmInfo
from protocol.errors import BalloonError
from protocol.virtio_balloon import BalloonQueue
from tests.host.control.machine import MIB, FakeMachine

STATS_VQ = 1 << 1


@pytest.mark.asyncio
async def test_facts() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.control.set_num_pages(12)
    machine.set_actual(5)
    assert machine.control.info() == VmInfo(
        pid=4711,
        memory_bytes=256 * MIB,
        num_pages=12,
        actual=5,
        features=STATS_VQ,
        driver_ready=True,
        setup=machine.setup,
    )


@pytest.mark.asyncio
async def test_new_target_is_shown_to_the_driver_and_emitted() -> None:
    machine = FakeMachine(0)
    told: list[int] = []
    machine.on_config = lambda: told.append(machine.balloon.config.num_pages)
    for pages in (256, 256, 0):
        machine.control.set_num_pages(pages)
    await asyncio.sleep(0)
    assert told == [0, 0, 0]
    assert machine.fields("target") == [{"bytes": MIB}, {"bytes": 0}]
    for pages in (-1, 1 << 32):
        with pytest.raises(BalloonError, match="a balloon has"):
            machine.control.set_num_pages(pages)


@pytest.mark.asyncio
async def test_new_actual_size_is_emitted_once() -> None:
    machine = FakeMachine(0)
    sizes: list[int] = []
    machine.control.on_balloon_change = sizes.append
    for pages in (0, 7, 7, 3):
        machine.set_actual(pages)
    assert sizes == [7, 3]
    told = machine.fields("balloon")[0]
    assert told.pop("t") <= asyncio.get_running_loop().time()
    assert told == {"actual_bytes": 7 * 4096, "target_bytes": 0}


@pytest.mark.asyncio
async def test_size_that_changes_all_the_time_is_emitted_at_an_interval_and_at_the_end() -> None:
    machine = FakeMachine(0)
    for pages in range(1, 1000):
        machine.set_actual(pages)
    machine.control.close()
    machine.control.close()
    sizes = [event["actual_bytes"] // 4096 for event in machine.fields("balloon")]
    assert (sizes[0], sizes[-1]) == (1, 999)
    assert len(sizes) < 100


@pytest.mark.asyncio
async def test_last_size_is_emitted_without_another_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.balloon_size, "BALLOON_INTERVAL", 0.001)
    told: asyncio.Queue[object] = asyncio.Queue()

    class Machine(FakeMachine):
        def emit(self, event: str, **fields: object) -> None:
            told.put_nowait(fields["actual_bytes"])

    machine = Machine(0)
    for pages in (1, 2, 3):
        machine.set_actual(pages)
    async with asyncio.timeout(5):
        assert [await told.get(), await told.get()] == [1 * 4096, 3 * 4096]
    machine.control.close()


# -- statistics -------------------------------------------------------------------------------------------------------


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
async def test_waiting_commands_fail_when_the_machine_goes() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.stats.on_give_back = lambda: None
    asked = asyncio.create_task(machine.control.statistics())
    await asyncio.sleep(0)
    machine.control.close()
    with pytest.raises(BalloonError, match="has gone"):
        await asked


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
