"""The drafts DEVICE_INIT_REPORTED and DEVICE_INIT_ON_INFLATE between the emulated guest and the device."""

from pathlib import Path
from typing import Any

import pytest

from guest.balloon.initialised_pages import DRAFT_FEATURES
from guest.workloads.memhog import Memhog
from host.balloon.offered_features import OFFERED
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature
from tests.pair.balloon import MIB, Later, running_pair

REPORTED = feature_mask(BalloonFeature.DEVICE_INIT_REPORTED)
ON_INFLATE = feature_mask(BalloonFeature.DEVICE_INIT_ON_INFLATE)
POISON = feature_mask(BalloonFeature.PAGE_POISON)
PAGES = 2048


@pytest.mark.asyncio
@pytest.mark.parametrize("page_poison", [None, 0])
async def test_inflated_pages_come_back_initialised_and_are_used_as_they_are(
    tmp_path: Path, page_poison: int | None
) -> None:
    work = Later(Memhog(size=48 * MIB, hold=0))
    async with running_pair(
        tmp_path / "s",
        OFFERED | ON_INFLATE | POISON,
        work,
        num_pages=PAGES,
        draft=DRAFT_FEATURES,
        page_poison=page_poison,
    ) as pair:
        await pair.until_actual(PAGES)
        pair.device.control.set_num_pages(0)
        await pair.until_actual(0)
        work.may_begin = True
        await pair.until(lambda: pair.events("finished"))
        (finished,) = pair.events("finished")
        assert finished["corrupted_pages"] == 0
        assert PAGES // 2 < finished["uncleared_pages"] <= PAGES


@pytest.mark.asyncio
async def test_pattern_that_the_device_cannot_leave_keeps_pages_and_none_is_initialised(tmp_path: Path) -> None:
    work = Later(Memhog(size=48 * MIB, hold=0))
    async with running_pair(
        tmp_path / "s",
        OFFERED | DRAFT_FEATURES | POISON,
        work,
        num_pages=PAGES,
        draft=DRAFT_FEATURES,
        page_poison=0xAAAA_AAAA,
    ) as pair:
        await pair.until_actual(PAGES)
        pair.device.control.set_num_pages(0)
        await pair.until_actual(0)
        work.may_begin = True
        await pair.until(lambda: pair.events("finished"))
        (finished,) = pair.events("finished")
        assert (finished["corrupted_pages"], finished["uncleared_pages"]) == (0, 0)


@pytest.mark.asyncio
async def test_reported_blocks_are_initialised_and_used_as_they_are(tmp_path: Path) -> None:
    work = Later(Memhog(size=32 * MIB, hold=0))
    options: dict[str, Any] = {"reporter": "boundary", "reporting_delay": 0.01, "high_water_mark": 1}
    async with running_pair(tmp_path / "s", OFFERED | REPORTED, work, draft=DRAFT_FEATURES, **options) as pair:
        await pair.until(lambda: sum(event["bytes"] for event in pair.events("report")) > 32 * MIB)
        work.may_begin = True
        await pair.until(lambda: pair.events("finished"))
        reports = pair.events("report")
        assert [event["initialised_bytes"] for event in reports] == [event["bytes"] for event in reports]
        (finished,) = pair.events("finished")
        assert finished["corrupted_pages"] == 0
        assert finished["uncleared_pages"] > 1024


@pytest.mark.asyncio
@pytest.mark.parametrize(("offered", "draft"), [(OFFERED, DRAFT_FEATURES), (OFFERED | DRAFT_FEATURES, 0)])
async def test_drafts_need_both_sides(tmp_path: Path, offered: int, draft: int) -> None:
    options: dict[str, Any] = {"reporter": "boundary", "reporting_delay": 0.01, "high_water_mark": 1}
    async with running_pair(tmp_path / "s", offered, num_pages=PAGES, draft=draft, **options) as pair:
        await pair.until_actual(PAGES)
        await pair.until(lambda: pair.events("report"))
        (attached,) = pair.events("attached")
        assert attached["features"] & DRAFT_FEATURES == 0
        assert all("initialised_bytes" not in event for event in pair.events("report"))
