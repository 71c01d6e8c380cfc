"""The size of a balloon: a new target, the driver's own size, and the events of both."""

import asyncio

import pytest

import host.control.balloon_size
from protocol.errors import BalloonError
from tests.host.control.machine import MIB, FakeMachine


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
