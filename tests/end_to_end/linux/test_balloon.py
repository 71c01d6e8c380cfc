"""The balloon's size, statistics and reclaiming with a living kernel, over both ring formats.

Page reporting is not offered here: what the guest's memory costs changes by nothing but what a test asks for.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from host.qmp.qmp_client import QmpClient
from protocol.units import MIB
from protocol.virtio import FeatureBit, has_feature
from tests.harness.linux_guest import LinuxGuest
from tests.harness.processes import DaemonProcess, until

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

MEMORY = 1024 * MIB
TOUCHED = 800 * MIB
INFLATED = 400 * MIB


@dataclass(frozen=True)
class Balloon:
    """A guest and the control socket of its daemon. ``whole`` is what the guest has without a balloon, in bytes."""

    daemon: DaemonProcess
    guest: LinuxGuest
    control: QmpClient
    whole: int

    @property
    def size(self) -> int:
        """How large the driver says the balloon is, in bytes."""
        return self.whole - int(self.control.command("query-balloon")["actual"])

    def resize(self, size: int, *, deadline: float = 20.0) -> None:
        """Set the balloon's target to ``size`` bytes, and wait until it is reached."""
        self.control.command("balloon", value=self.whole - size)
        until(lambda: self.size == size, f"the balloon has {size} bytes", deadline=deadline)

    def used(self) -> int:
        """Return the guest's memory that is not free, by its own account: a balloon's pages are among it."""
        meminfo = self.guest.meminfo()
        return meminfo["MemTotal"] - meminfo["MemFree"]


def connect(daemon: DaemonProcess, guest: LinuxGuest, control: QmpClient) -> Balloon:
    [vm] = control.command("query-vms")
    return Balloon(daemon, guest, control, vm["memory"])


@pytest.fixture(scope="module", params=["split", "packed", "in-band"])
def balloon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernel_release: str
) -> Iterator[Balloon]:
    directory = tmp_path_factory.mktemp(request.param)
    packed = request.param == "packed"
    features = f"packed={'on' if packed else 'off'},must-tell-host={'off' if request.param == 'split' else 'on'}"
    features += ",free-page-hint=on,page-reporting=off"
    in_band = "on" if request.param == "in-band" else "off"
    options = ("--control", str(directory / "control"), "--features", features, "--in-band", in_band)
    with (
        DaemonProcess(directory, *options) as daemon,
        LinuxGuest(daemon, directory, memory=MEMORY) as guest,
        QmpClient(directory / "control") as control,
    ):
        assert has_feature(guest.balloon_features, FeatureBit.RING_PACKED) == packed
        yield connect(daemon, guest, control)
        guest.power_off()
        assert daemon.events.all("queue_stopped") == daemon.events.all("message_refused") == []


def test_statistics_are_what_the_guest_itself_says(balloon: Balloon) -> None:
    for filled in (0, 200 * MIB):
        if filled:
            balloon.guest.fill(filled)
        statistics = balloon.control.command("query-guest-statistics")["statistics"]
        meminfo = balloon.guest.meminfo()
        assert statistics["memfree"] == pytest.approx(meminfo["MemFree"], rel=0.02)
        assert statistics["memtot"] == pytest.approx(meminfo["MemTotal"], rel=0.02)
        assert statistics["avail"] == pytest.approx(meminfo["MemAvailable"], rel=0.02)
    balloon.guest.free()


def test_balloon_takes_memory_up_to_its_target_and_gives_it_back(balloon: Balloon) -> None:
    guest = balloon.guest
    guest.fill(TOUCHED)
    guest.free()
    used, resident = balloon.used(), guest.ram.resident_bytes()
    balloon.resize(INFLATED)
    assert balloon.used() - used == pytest.approx(INFLATED, rel=0.02)
    assert resident - guest.ram.resident_bytes() > 0.9 * INFLATED
    balloon.resize(0)
    assert balloon.used() == pytest.approx(used, abs=0.02 * INFLATED)
    resident = guest.ram.resident_bytes()
    guest.fill(TOUCHED)
    assert guest.ram.resident_bytes() > resident + 0.8 * INFLATED
    guest.free()
    assert sum(event["refused_bytes"] for event in balloon.daemon.events.all("inflate")) == 0


def reclaim(balloon: Balloon, method: str) -> float:
    """Reclaim from a guest that has just freed most of its memory; return the seconds that took."""
    guest = balloon.guest
    guest.fill(TOUCHED)
    guest.free()
    blocks, resident = guest.free_blocks(), guest.ram.resident_bytes()
    begin = time.monotonic()
    answer = balloon.control.command("reclaim", method=method)
    seconds = time.monotonic() - begin
    assert answer["complete"]
    assert answer["discarded-bytes"] >= 0.9 * blocks
    assert resident - guest.ram.resident_bytes() > 0.9 * TOUCHED
    until(lambda: balloon.size == 0, "the balloon is empty again")
    return seconds


@pytest.mark.parametrize("method", ["hint", "inflate"])
def test_free_memory_comes_back_on_demand(
    balloon: Balloon, method: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("seconds", reclaim(balloon, method))  # how fast it is, scripts/bench says
    # The guest has its memory again, and what it reads there is what it writes there.
    balloon.guest.run("head -c 100M /dev/zero >/tmp/a && cmp -n 104857600 /tmp/a /dev/zero && rm /tmp/a")


GREEDY = "sh -c 'head -c 40M /dev/zero | tail -c 40M >/dev/null; echo $?' 2>/dev/null"
"""A program that needs 40 MiB of its own, and the status that it ends with. A kernel out of memory takes 1 MiB
from the balloon at a time, four times a second: no more than a few may be wanting."""


@pytest.mark.parametrize(
    ("deflates", "packed"),
    [(True, "off"), (True, "on"), (False, "off")],
    ids=["deflate-on-oom-split", "deflate-on-oom-packed", "without-split"],
)
def test_guest_short_of_memory_takes_it_from_the_balloon(tmp_path: Path, deflates: bool, packed: str) -> None:
    switch = "on" if deflates else "off"
    features = f"deflate-on-oom={switch},packed={packed}"
    options = ("--control", str(tmp_path / "control"), "--features", features, "--guest-reserve", "0")
    with (
        DaemonProcess(tmp_path, *options) as daemon,
        LinuxGuest(daemon, tmp_path) as guest,
        QmpClient(tmp_path / "control") as control,
    ):
        balloon = connect(daemon, guest, control)
        total = guest.meminfo()["MemTotal"]
        inflated = guest.meminfo()["MemFree"] // MIB * MIB - 32 * MIB
        balloon.resize(inflated)
        status = int(guest.run(GREEDY))
        log = guest.log.read_text(encoding="utf-8", errors="replace")
        assert (status == 0) == deflates
        assert ("Out of memory: Killed process" in log) != deflates
        assert (balloon.size < inflated) == deflates
        # What may be taken back still counts as the guest's own.
        assert guest.meminfo()["MemTotal"] == (total if deflates else pytest.approx(total - inflated, abs=MIB))
        guest.power_off(may_complain=not deflates)  # allocations fail where a program is killed for them


@pytest.mark.parametrize("poison", ["on", "off"])
def test_driver_that_has_not_kicked_yet_is_told_of_a_target_and_a_reclaim(tmp_path: Path, poison: str) -> None:
    # With PAGE_POISON offered the driver takes features back, and User Mode Linux then enables no ring by message.
    features = f"statistics=off,page-reporting=off,free-page-hint=on,page-poison={poison}"
    options = ("--control", str(tmp_path / "control"), "--features", features, "--in-band", "on")
    with (
        DaemonProcess(tmp_path, *options) as daemon,
        LinuxGuest(daemon, tmp_path) as guest,
        QmpClient(tmp_path / "control") as control,
    ):
        balloon = connect(daemon, guest, control)
        assert control.command("query-vms")[0]["driver-ready"]
        blocks = guest.free_blocks()
        answer = control.command("reclaim", method="hint")
        assert answer["complete"]
        assert answer["discarded-bytes"] >= 0.9 * blocks
        balloon.resize(64 * MIB)
        balloon.resize(0)
        guest.power_off()
