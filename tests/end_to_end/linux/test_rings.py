"""Every ring format that Linux's driver knows, each with an unmodified kernel."""

import itertools
from pathlib import Path

import pytest

from protocol.units import MIB
from protocol.virtio import FeatureBit, has_feature
from protocol.virtio_balloon import BalloonFeature
from tests.harness.linux_guest import LinuxGuest
from tests.harness.processes import DaemonProcess, until

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

FILLED = 100 * MIB
WITHIN = 20.0
"""Seconds. The kernel waits 2 s before a pass of reporting, then takes as many passes as its budget needs."""

SWITCHES = {
    "packed": FeatureBit.RING_PACKED,
    "indirect": FeatureBit.RING_INDIRECT_DESC,
    "event-idx": FeatureBit.RING_EVENT_IDX,
}
ROWS = [dict(zip(SWITCHES, row, strict=True)) for row in itertools.product((False, True), repeat=len(SWITCHES))]


def name_of(row: dict[str, bool]) -> str:
    ring = "packed" if row["packed"] else "split"
    descriptors = "indirect" if row["indirect"] else "direct"
    return f"{ring}-{descriptors}-{'event-index' if row['event-idx'] else 'flags'}"


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_memory_returns_over_every_kind_of_ring(tmp_path: Path, row: dict[str, bool]) -> None:
    features = ",".join(f"{name}={'on' if on else 'off'}" for name, on in row.items())
    with DaemonProcess(tmp_path, "--features", features) as daemon, LinuxGuest(daemon, tmp_path) as guest:
        for name, bit in SWITCHES.items():
            assert has_feature(guest.balloon_features, bit) == row[name], name
        assert has_feature(guest.balloon_features, BalloonFeature.PAGE_REPORTING)
        before = guest.ram.resident_bytes()
        guest.fill(FILLED)
        assert guest.ram.resident_bytes() > before + 0.9 * FILLED
        guest.free()
        until(lambda: guest.ram.resident_bytes() < before + 0.1 * FILLED, "the memory is the host's", deadline=WITHIN)
        guest.power_off()
        daemon.settled(1)
        reports = daemon.events.all("report")
        assert sum(event["discarded_bytes"] for event in reports) >= 0.9 * FILLED
        assert sum(event["refused_bytes"] for event in reports) == 0
        assert daemon.events.all("queue_stopped") == daemon.events.all("message_refused") == []
