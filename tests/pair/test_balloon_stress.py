"""Everything a balloon can do at the same time, under workloads that check what they have written: nothing is lost."""

import asyncio
import contextlib
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from guest.virtqueue.ring_memory import RingOptions
from guest.workloads.churn import Churn
from guest.workloads.memhog import Memhog
from guest.workloads.pagecache import PageCacheUser
from host.balloon.offered_features import OFFERED
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature
from tests.pair.balloon import MIB, Pair, running_pair

FEATURES = OFFERED | feature_mask(
    FeatureBit.RING_PACKED, BalloonFeature.STATS_VQ, BalloonFeature.DEFLATE_ON_OOM, BalloonFeature.FREE_PAGE_HINT
)
MUST_TELL_HOST = feature_mask(BalloonFeature.MUST_TELL_HOST)
PAGE_POISON = feature_mask(BalloonFeature.PAGE_POISON)

PAGES = 32 * MIB // PAGE_SIZE
"""The largest target of the balloon: with what the workloads use it is a little more than there is."""


async def ask_for_anything(pair: Pair, chance: random.Random) -> None:
    """Change the balloon's size, hint, ask for statistics, and once take the device away, until the guest is done."""
    for what in itertools.chain(("hint", "size", "hang up"), itertools.cycle(("size", "hint", "size", "statistics"))):
        if pair.events("finished"):
            return
        device = pair.device
        with contextlib.suppress(BalloonError):  # no driver at the moment
            if what == "size":
                device.control.set_num_pages(chance.randrange(PAGES))
                await asyncio.sleep(chance.random() * 0.05)
            elif what == "hint":
                await device.control.reclaim("hint")
            elif what == "statistics":
                await device.control.statistics()
            else:
                pair.hang_up()
                await pair.until(lambda: len(pair.events("attached")) == 2)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("features", "options"),
    [
        (FEATURES, {"ring": RingOptions(packed=True)}),
        (FEATURES | MUST_TELL_HOST, {"ring": RingOptions(size=32), "cpus": 1, "zones": "x86-64"}),
        (FEATURES | PAGE_POISON, {"page_poison": 0, "reporter": "rotation", "high_water_mark": None}),
    ],
    ids=["packed", "must tell host", "page poison"],
)
@pytest.mark.long
async def test_pages_survive_every_use_at_once(
    features: int,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("guest.workloads.workload.RETRIES", 400)  # a large block may be long in coming
    work = (
        Churn(size=8 * MIB, seconds=1.0, lifetime=0.1),
        Memhog(size=12 * MIB, order=0, hold=0.02, rest=0.01, repeat=4),
        PageCacheUser(size=16 * MIB, hold=0.02, rest=0.02, repeat=3),
    )
    chosen = {"reporter": "boundary", "high_water_mark": 1, "reporting_delay": 0.01, "reporting_capacity": 1, **options}
    async with running_pair(tmp_path / "socket", features, *work, **chosen) as pair:
        free = pair.memory("free_bytes") + pair.memory("allocated_bytes") + pair.memory("balloon_bytes")
        await ask_for_anything(pair, random.Random(1))
        pair.device.control.set_num_pages(0)
        # All but what lies on per-CPU lists; a block of hinting would be 4 MiB.
        await pair.until(lambda: pair.memory("balloon_bytes") == 0 and pair.memory("free_bytes") > free - 4 * MIB)
    assert pair.events("finished")[0]["corrupted_pages"] == 0
    assert pair.events("inflate")
    assert pair.events("hinting")
