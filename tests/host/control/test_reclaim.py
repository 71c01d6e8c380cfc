"""Reclaiming by both methods, from drivers that do what they should and from drivers that do not."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

import host.control.guest_statistics
import host.control.reclaim
import host.control.reclaim_progress
from host.control.reclaim_progress import ReclaimMethod
from host.memory.guest_memory import RegionFile
from protocol.errors import BalloonError
from protocol.virtio_balloon import BalloonQueue
from tests.host.control.machine import MIB, PAGES_PER_MIB, FakeMachine

STATS_VQ, FREE_PAGE_HINT, PAGE_POISON = 1 << 1, 1 << 3, 1 << 4
BOTH = STATS_VQ | FREE_PAGE_HINT
SPARE = 160 - 16
"""MiB that a machine of 256 MiB with 160 MiB free can give: a sixteenth stays."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.reclaim_progress, "STALL", 0.25)
    monkeypatch.setattr(host.control.guest_statistics, "STATISTICS_TIMEOUT", 0.25)


def check_closed(machine: FakeMachine) -> None:
    """Check that the round is closed and that the target is the one that was set."""
    assert not machine.balloon.hinting.is_open
    assert machine.balloon.config.free_page_hint_cmd_id == machine.balloon.hinting.command_id


# -- inflate ----------------------------------------------------------------------------------------------------------


def inflating(machine: FakeMachine, most: int = 1000) -> list[int]:
    """Have the driver follow its target, up to ``most`` MiB; return the list of targets it sees."""
    targets: list[int] = []

    def follow() -> None:
        config = machine.balloon.config
        targets.append(config.num_pages // PAGES_PER_MIB)
        while (grow := min(targets[-1], most) - machine.balloon.config.actual // PAGES_PER_MIB) > 0:
            machine.inflate(min(grow, 50))
        if machine.balloon.config.actual > config.num_pages:
            machine.set_actual(config.num_pages)

    machine.on_config = follow
    return targets


@pytest.mark.asyncio
async def test_free_memory_is_inflated_and_the_target_restored() -> None:
    machine = FakeMachine(STATS_VQ)
    targets = inflating(machine)
    result = await machine.control.reclaim()
    await asyncio.sleep(0)
    assert targets == [SPARE, 0]
    assert (result.method, result.complete) == (ReclaimMethod.INFLATE, True)
    assert (result.offered_bytes, result.discarded_bytes) == (SPARE * MIB, SPARE * MIB)
    assert machine.balloon.config.actual == 0
    assert machine.fields("target") == [{"bytes": SPARE * MIB}, {"bytes": 0}]
    assert machine.fields("reclaim") == [
        {
            "method": "inflate",
            "offered_bytes": SPARE * MIB,
            "discarded_bytes": SPARE * MIB,
            "seconds": round(result.seconds, 6),
            "complete": True,
            "stopped_by": None,
        }
    ]


@pytest.mark.asyncio
async def test_balloon_that_has_a_size_already_grows_by_what_is_free() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.control.set_num_pages(32 * PAGES_PER_MIB)
    machine.set_actual(32 * PAGES_PER_MIB)
    targets = inflating(machine)
    await machine.control.reclaim("inflate")
    await asyncio.sleep(0)
    assert targets[-2:] == [32 + SPARE, 32]


@pytest.mark.asyncio
async def test_guest_that_has_less_than_it_said_gives_what_it_has() -> None:
    machine = FakeMachine(STATS_VQ)
    targets = inflating(machine, most=10)
    result = await machine.control.reclaim(ReclaimMethod.INFLATE)
    await asyncio.sleep(0)
    assert (result.complete, result.discarded_bytes, targets[-1]) == (False, 10 * MIB, 0)


@pytest.mark.asyncio
async def test_driver_that_says_its_size_late_is_not_waited_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.reclaim_progress, "STALL", 10.0)
    machine = FakeMachine(STATS_VQ)

    def follow() -> None:
        pages = machine.balloon.config.num_pages
        asyncio.get_running_loop().call_later(0.01, machine.set_actual, pages)  # nothing else is heard of it

    machine.on_config = follow
    assert (await asyncio.wait_for(machine.control.reclaim(), 5)).complete


@pytest.mark.asyncio
async def test_guest_that_runs_short_of_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes pages out again, and would put them back and take them out for as long as it is asked to."""
    monkeypatch.setattr(host.control.reclaim_progress, "STALL", 10.0)
    machine = FakeMachine(STATS_VQ)
    machine.inflate(1)

    def follow() -> None:
        if machine.balloon.config.num_pages > machine.balloon.config.actual:
            machine.deflate(1)  # it had begun before it saw the new target
            machine.inflate(51)
            machine.deflate(1)

    machine.on_config = follow
    result = await asyncio.wait_for(machine.control.reclaim(), 5)
    assert (result.complete, result.offered_bytes) == (False, 51 * MIB)
    assert machine.balloon.config.num_pages == 0


@pytest.mark.parametrize("free", [0, 16 * MIB, 2**64 - 1])
@pytest.mark.asyncio
async def test_free_memory_that_the_guest_claims_is_bounded(free: int) -> None:
    machine = FakeMachine(STATS_VQ)
    machine.free = free
    targets = inflating(machine)
    result = await machine.control.reclaim("inflate")
    await asyncio.sleep(0)
    assert result.complete
    assert targets == ([240, 0] if free > 256 * MIB else [])


@pytest.mark.asyncio
async def test_balloon_that_is_to_grow_further_anyway_is_left_alone() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.control.set_num_pages(190 * PAGES_PER_MIB)
    assert (await machine.control.reclaim()).complete
    assert machine.balloon.config.num_pages == 190 * PAGES_PER_MIB


@pytest.mark.asyncio
async def test_new_target_ends_a_reclaim_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.reclaim_progress, "STALL", 10.0)
    machine = FakeMachine(STATS_VQ)
    changed = asyncio.Event()
    machine.on_config = changed.set
    task = asyncio.create_task(machine.control.reclaim())
    await changed.wait()
    machine.control.set_num_pages(99)
    result = await asyncio.wait_for(task, 5)
    assert (result.complete, machine.balloon.config.num_pages) == (False, 99)


@pytest.mark.asyncio
async def test_guest_that_does_not_say_what_is_free() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.stats.on_give_back = lambda: machine.answer(majflt=1)
    with pytest.raises(BalloonError, match="does not say"):
        await machine.control.reclaim()
    assert machine.balloon.config.num_pages == 0
    machine.stats.on_give_back = lambda: None
    with pytest.raises(BalloonError, match="no statistics within"):
        await machine.control.reclaim()


# -- hint -------------------------------------------------------------------------------------------------------------


async def turns(condition: Callable[[], bool]) -> None:
    """Let the other tasks of the event loop run until ``condition`` holds."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come to that")


def hinting(machine: FakeMachine, mib: int, *, stop: bool = True) -> list[int]:
    """Have the driver answer a round with ``mib`` MiB in blocks of 4; return the list of ids that it sees."""
    ids: list[int] = []

    def follow() -> None:
        ids.append(machine.balloon.config.free_page_hint_cmd_id)
        if ids[-1] >= 2:
            machine.command(ids[-1])
            for _ in range(mib // 4):
                assert machine.hint(4)
            if stop:
                machine.command(0)

    machine.on_config = follow
    return ids


@pytest.mark.asyncio
async def test_round_is_begun_ended_and_done() -> None:
    machine = FakeMachine(BOTH)
    ids = hinting(machine, 40)
    for number in range(3):
        result = await machine.control.reclaim()
        await asyncio.sleep(0)
        assert ids[-2:] == [2 + number, 1]
        assert (result.method, result.complete) == (ReclaimMethod.HINT, True)
        assert (result.offered_bytes, result.discarded_bytes) == (40 * MIB, 40 * MIB)
        check_closed(machine)
    assert machine.fields("hinting")[:2] == [{"state": "start", "command_id": 2}, {"state": "done", "command_id": 1}]


@pytest.mark.parametrize("mib", [0, 8])
@pytest.mark.asyncio
async def test_driver_that_does_not_end_the_round_has_it_ended(mib: int) -> None:
    machine = FakeMachine(BOTH)
    hinting(machine, mib, stop=False)
    result = await machine.control.reclaim("hint")
    assert (result.complete, result.discarded_bytes) == (False, mib * MIB)
    assert [fields["state"] for fields in machine.fields("hinting")] == ["start", "stop", "done"]
    assert not machine.hint(4)
    check_closed(machine)


@pytest.mark.asyncio
async def test_driver_that_gives_blocks_without_end_has_the_round_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.reclaim_progress, "LONGEST", 0.05)
    machine = FakeMachine(BOTH)
    over = False

    async def give() -> None:
        machine.command(2)
        while not over:
            machine.hint(4)
            await asyncio.sleep(0)

    givers: list[asyncio.Task[None]] = []
    machine.on_config = lambda: givers.append(asyncio.create_task(give())) if not givers else None
    result = await asyncio.wait_for(machine.control.reclaim(), 5)
    over = True
    assert not result.complete
    check_closed(machine)


@pytest.mark.asyncio
async def test_end_of_a_reclaim_is_not_shown_while_a_block_is_being_discarded() -> None:
    machine = FakeMachine(BOTH)
    hinting(machine, 8)
    machine.free_page.busy = asyncio.Event()
    task = asyncio.create_task(machine.control.reclaim())
    await machine.free_page.awaited.wait()
    assert not task.done()
    assert machine.balloon.hinting.command_id == 0
    assert not machine.hint(4)
    with pytest.raises(BalloonError, match="already"):
        await machine.control.reclaim("inflate")
    machine.free_page.busy.set()
    assert (await task).complete
    assert machine.balloon.hinting.command_id == 1


@pytest.mark.asyncio
async def test_round_is_completed_when_its_client_disconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.reclaim_progress, "STALL", 10.0)
    machine = FakeMachine(BOTH)
    hinting(machine, 8, stop=False)
    task = asyncio.create_task(machine.control.reclaim())
    await turns(lambda: machine.balloon.hinting.is_open)
    task.cancel()
    await asyncio.wait([task])
    assert machine.balloon.hinting.is_open
    await turns(lambda: machine.balloon.hinting.driver_id is not None)
    machine.command(0)
    await turns(lambda: bool(machine.fields("reclaim")))
    assert machine.fields("reclaim")[0]["complete"]
    check_closed(machine)


@pytest.mark.asyncio
async def test_queue_that_only_runs_once_it_was_kicked() -> None:
    """User Mode Linux, with kicks in-band."""
    machine = FakeMachine(BOTH)
    hinting(machine, 8)
    queue = machine.queues.pop(BalloonQueue.FREE_PAGE)
    follow = machine.on_config

    def start() -> None:
        machine.queues[BalloonQueue.FREE_PAGE] = queue
        follow()

    machine.on_config = start
    assert (await machine.control.reclaim("hint")).discarded_bytes == 8 * MIB


@pytest.mark.asyncio
async def test_reset_ends_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine(BOTH)
    hinting(machine, 8, stop=False)
    begun = asyncio.Event()
    follow = machine.on_config

    def follow_and_say() -> None:
        follow()
        begun.set()

    machine.on_config = follow_and_say
    task = asyncio.create_task(machine.control.reclaim())
    await begun.wait()
    del machine.queues[BalloonQueue.FREE_PAGE]
    machine.balloon.reset()
    assert not (await task).complete
    check_closed(machine)


# -- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hint", "inflate"])
@pytest.mark.asyncio
async def test_machine_that_goes_away_in_the_middle_is_one_error(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.control.reclaim_progress, "STALL", 10.0)
    machine = FakeMachine(BOTH)
    changed = asyncio.Event()
    machine.on_config = changed.set
    task = asyncio.create_task(machine.control.reclaim(method))
    await changed.wait()
    machine.queues.clear()
    machine.control.close()
    with pytest.raises(BalloonError, match="the virtual machine has gone"):
        await asyncio.wait_for(task, 5)
    with pytest.raises(BalloonError, match="the virtual machine has gone"):
        await machine.control.reclaim(method)
    assert machine.balloon.config.num_pages == 0
    check_closed(machine)


@pytest.mark.asyncio
async def test_reclaim_that_cannot_be_done_is_refused() -> None:
    machine = FakeMachine(BOTH | PAGE_POISON)
    control = machine.control
    with pytest.raises(BalloonError, match="not by magic"):
        await control.reclaim("magic")
    machine.balloon.features = STATS_VQ
    with pytest.raises(BalloonError, match="FREE_PAGE_HINT was not negotiated"):
        await control.reclaim("hint")
    machine.balloon.features = BOTH | PAGE_POISON
    machine.balloon.config = replace(machine.balloon.config, poison_val=1)
    with pytest.raises(BalloonError, match=r"no page of this guest is discarded \(poison\)"):
        await control.reclaim()
    machine.balloon.config = replace(machine.balloon.config, poison_val=0)
    machine.balloon.discard = False
    with pytest.raises(BalloonError, match="discard_off"):
        await control.reclaim()
    machine.balloon.discard = True
    machine.driver_ready = False
    with pytest.raises(BalloonError, match="not ready"):
        await control.reclaim()
    check_closed(machine)


@pytest.mark.asyncio
async def test_guest_in_huge_pages_is_not_inflated_for_nothing() -> None:
    machine = FakeMachine(STATS_VQ)
    machine.region_files = [RegionFile(-1, 2 * MIB, sealed=True, identity=(0, 0))]
    with pytest.raises(BalloonError, match="huge pages of 2097152 bytes, and smaller pages are collected only"):
        await machine.control.reclaim()
    assert machine.fields("target") == []
    collecting = FakeMachine(STATS_VQ | 1)
    collecting.region_files = machine.region_files
    inflating(collecting)
    assert (await collecting.control.reclaim()).complete
