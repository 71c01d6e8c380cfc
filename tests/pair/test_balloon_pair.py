"""The balloon from both sides: the guest's driver and the host's device, joined in one process."""

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest

from guest.control import ask
from guest.vhost_user.attachment import Attachment
from guest.virtqueue.ring_memory import RingOptions
from guest.workloads.memhog import Idle, Memhog
from host.balloon.offered_features import OFFERED
from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature
from tests.pair.balloon import MIB, Later, running_pair

ALL: Final = OFFERED | feature_mask(
    BalloonFeature.STATS_VQ, BalloonFeature.DEFLATE_ON_OOM, BalloonFeature.FREE_PAGE_HINT, FeatureBit.RING_PACKED
)
RINGS: Final = {"split": RingOptions(), "packed": RingOptions(packed=True)}
MUST_TELL_HOST: Final = feature_mask(BalloonFeature.MUST_TELL_HOST)
DEFLATE_ON_OOM: Final = feature_mask(BalloonFeature.DEFLATE_ON_OOM)
PAGE_POISON: Final = feature_mask(BalloonFeature.PAGE_POISON)
REPORTING: Final = feature_mask(BalloonFeature.PAGE_REPORTING)
NO_BALLOON_FEATURE: Final = ALL & ~feature_mask(*BalloonFeature)
USED: Final = Memhog(size=48 * MIB, hold=0)
"""Leaves 48 MiB free that the host still keeps memory for."""
PAGES: Final = 32 * MIB // PAGE_SIZE


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workloads wait long for memory: a device on a busy machine may be slow to give it back."""
    monkeypatch.setattr("guest.workloads.workload.RETRIES", 400)


@pytest.fixture(params=list(RINGS))
def ring(request: pytest.FixtureRequest) -> RingOptions:
    """Queues of either format."""
    return RINGS[request.param]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.mark.asyncio
@pytest.mark.parametrize("features", [ALL, ALL | MUST_TELL_HOST, NO_BALLOON_FEATURE])
async def test_balloon_follows_the_target_and_the_host_has_the_memory(
    features: int, ring: RingOptions, path: Path
) -> None:
    async with running_pair(path, features, USED, ring=ring) as pair:
        await pair.until_event("finished")
        assert pair.memory("resident_bytes") >= 48 * MIB
        pair.device.control.set_num_pages(PAGES)
        await pair.until_actual(PAGES)
        await pair.until(lambda: pair.memory("balloon_bytes") == 32 * MIB)
        assert pair.memory("resident_bytes") <= 18 * MIB
        pair.device.control.set_num_pages(100)
        await pair.until_actual(100)
        await pair.until(lambda: pair.memory("balloon_bytes") == 100 * PAGE_SIZE)
        await pair.until_event("deflate")
        assert [event["pages"] for event in pair.events("inflate")] == [PAGES]
        assert [event["pages"] for event in pair.events("deflate")] == [PAGES - 100]
        assert pair.events("deflate")[0]["actual_pages"] == 100


@pytest.mark.asyncio
async def test_pages_that_come_back_are_used_again(path: Path) -> None:
    needs_them = Later(Memhog(size=56 * MIB, hold=0))
    async with running_pair(path, ALL, needs_them) as pair:
        for _ in range(2):
            pair.device.control.set_num_pages(PAGES)
            await pair.until_actual(PAGES)
            pair.device.control.set_num_pages(0)
            await pair.until_actual(0)
        needs_them.may_begin = True
        await pair.until_event("finished")
    assert pair.events("finished")[0]["corrupted_pages"] == 0


@pytest.mark.asyncio
async def test_statistics_are_fresh(ring: RingOptions, path: Path) -> None:
    async with running_pair(path, ALL, Idle(seconds=0.01), ring=ring) as pair:
        free = pair.memory("free_bytes")
        for pages in (0, 1000):
            pair.device.control.set_num_pages(pages)
            await pair.until_actual(pages)
            values = (await pair.device.control.statistics()).values
            assert values["memtot"] == 64 * MIB
            assert values["memfree"] == free - pages * PAGE_SIZE
            assert values["oom_kill"] == values["swap_in"] == 0
        assert pair.events("statistics")[-1]["memfree"] == free - 1000 * PAGE_SIZE


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["hint", "inflate"])
async def test_host_takes_what_the_guest_does_not_use(method: str, ring: RingOptions, path: Path) -> None:
    async with running_pair(path, ALL, USED, ring=ring) as pair:
        await pair.until_event("finished")
        free = pair.memory("free_bytes")
        result = await pair.device.control.reclaim(method)
        assert result.complete
        assert result.discarded_bytes > 0
        await pair.until(lambda: pair.memory("free_bytes") == free and pair.memory("resident_bytes") < 12 * MIB)
        if method == "hint":
            states = [(event["state"], event["command_id"]) for event in pair.events("hinting")]
            assert states == [("start", 2), ("stop", 2), ("done", 2)]
            assert pair.events("hinting")[1]["bytes"] == result.offered_bytes


@pytest.mark.asyncio
async def test_hinted_while_the_guest_is_at_work(path: Path) -> None:
    """Blocks come and go, rounds follow one another: no page in use is discarded."""
    async with running_pair(path, ALL, Memhog(size=8 * MIB, hold=0.2, repeat=3, rest=0.05, order=0)) as pair:
        for _ in range(5):
            assert (await pair.device.control.reclaim("hint")).complete
        await pair.until_event("finished")
    assert pair.events("finished")[0]["corrupted_pages"] == 0


@pytest.mark.long
@pytest.mark.asyncio
@pytest.mark.parametrize("features", [ALL & ~REPORTING, ALL & ~REPORTING | MUST_TELL_HOST])
async def test_balloon_gives_way_when_memory_runs_out(features: int, ring: RingOptions, path: Path) -> None:
    """Without reporting: blocks that are being reported are not free, and the balloon deflates for them too."""
    greedy = Later(Memhog(size=48 * MIB, order=0, hold=0))
    async with running_pair(path, features, greedy, num_pages=PAGES, ring=ring) as pair:
        await pair.until_actual(PAGES)
        greedy.may_begin = True
        await pair.until_event("finished")
        given = sum(event["pages"] for event in pair.events("oom_deflate"))
        await pair.until_actual(PAGES - given)
        assert given % 256 == 0
        assert 16 * MIB <= given * PAGE_SIZE <= 20 * MIB
        assert pair.events("out_of_memory") == []


@pytest.mark.asyncio
async def test_balloon_that_may_not_give_way_costs_the_workload_its_life(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("guest.workloads.workload.RETRIES", 2)
    greedy = Later(Memhog(size=48 * MIB, order=0, hold=0))
    async with running_pair(path, ALL & ~DEFLATE_ON_OOM, greedy, num_pages=PAGES, status=1) as pair:
        await pair.until_actual(PAGES)
        greedy.may_begin = True
        await pair.until_event("finished")
        assert (await pair.device.control.statistics()).values["oom_kill"] == 1
        assert pair.events("oom_deflate") == []
        assert pair.device.control.info().actual == PAGES
    assert "out of memory" in capsys.readouterr().err


@pytest.mark.asyncio
async def test_next_device_finds_the_balloon_as_it_was_left(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running_pair(path, ALL, Idle(seconds=0.05)) as pair:
        free = pair.memory("free_bytes")
        pair.num_pages = PAGES
        pair.device.control.set_num_pages(PAGES)
        await pair.until_actual(PAGES)
        first = pair.device
        first.balloon.hinting.start()
        first.control.reclaimer.show_command_id("start")
        await pair.until(lambda: [event["state"] for event in pair.events("hinting")] == ["start", "stop"])
        pair.hang_up()
        await pair.until(lambda: pair.device is not first)
        await pair.until_actual(PAGES)
        assert [event["pages"] for event in pair.events("inflate")] == [PAGES]
        # What was hinted is back.
        assert (await pair.device.control.statistics()).values["memfree"] == free - PAGES * PAGE_SIZE
        pair.device.control.set_num_pages(0)
        await pair.until_actual(0)
    assert "attached again" in capsys.readouterr().err


@pytest.mark.asyncio
async def test_device_that_is_gone_when_its_driver_is_inserted_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_pair(path, ALL, Idle(seconds=0.01), control=path.with_name("control")) as pair:
        pair.device.control.set_num_pages(PAGES)
        await pair.until_actual(PAGES)
        first, bind_again = pair.device, Attachment.bind_again

        async def bind_too_late(attachment: Attachment) -> Attachment:
            pair.hang_up()
            return await bind_again(attachment)

        monkeypatch.setattr(Attachment, "bind_again", bind_too_late)
        assert await asyncio.to_thread(ask, path.with_name("control"), "reset") == "reset\n"
        await pair.until(lambda: len(pair.events("attached")) == 2)
        assert pair.device is not first
        comings = [event["event"] for event in pair.events() if event["event"] in ("attached", "detached")]
        assert comings == ["attached", "detached", "attached"]
    assert "attached again" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.asyncio
@pytest.mark.parametrize("byte", [0, 0xAA])
async def test_free_pages_hold_the_pattern_after_any_use_by_the_device(
    byte: int, ring: RingOptions, path: Path
) -> None:
    """A discarded page is zero: right for a guest whose pattern is zero, and not done to one with another pattern."""
    options: dict[str, Any] = {
        "ring": ring,
        "page_poison": byte * 0x01010101,
        "reporter": "boundary",
        "high_water_mark": 1,
        "reporting_delay": 0.01,
    }
    work = Memhog(size=24 * MIB, hold=0.05, rest=0.1, repeat=4)
    later = Later(Memhog(size=56 * MIB, hold=0))
    async with running_pair(path, ALL | PAGE_POISON, work, later, **options) as pair:
        assert pair.device.balloon.config.poison_val == byte * 0x01010101
        await pair.until_event("report")
        if byte == 0:
            assert (await pair.device.control.reclaim("hint")).complete
        for pages in (PAGES // 2, 0):
            pair.device.control.set_num_pages(pages)
            await pair.until_actual(pages)
        await pair.until(lambda: [event["name"] for event in pair.events("phase")].count("rest") == 4)
        later.may_begin = True
        await pair.until_event("finished")
    assert pair.events("finished")[0]["corrupted_pages"] == 0


@pytest.mark.asyncio
async def test_guest_with_a_pattern_does_not_report_to_a_device_that_was_not_told(path: Path) -> None:
    options: dict[str, Any] = {
        "page_poison": 0,
        "reporter": "boundary",
        "high_water_mark": 1,
    }
    async with running_pair(path, ALL, Idle(seconds=0.01), **options) as pair:
        features = pair.events("attached")[0]["features"]
        assert not features & (PAGE_POISON | feature_mask(BalloonFeature.PAGE_REPORTING))
