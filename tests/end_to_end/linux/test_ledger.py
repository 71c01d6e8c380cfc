"""The ledger of a living kernel: before and after its free memory is reported, and without reports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from guest.ledger.ledger import Ledger
from guest.ledger.linux_ledger import linux_ledger, parse_zones
from guest.mm.pageblock import MAX_ORDER
from guest.mm.reporting.cause import Cause
from tests.harness.processes import ROOT, DaemonProcess

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

LIMIT = 90
"""Seconds for a boot and a short command; ordinary is 10 s."""
MIB = 1 << 20
SCRIPT = """\
head -c 120M /dev/zero > /tmp/zeros; rm /tmp/zeros; sleep 8
cat /proc/zoneinfo; echo ===; cat /proc/buddyinfo
"""


def ledger_of_a_kernel(folder: Path, *, is_reporting: bool) -> Ledger:
    """Return the ledger of a kernel that has freed 120 MiB some seconds ago."""
    options = () if is_reporting else ("--features", "page-reporting=off")
    with DaemonProcess(folder, *options) as daemon:
        events = folder / "guest-events"
        words = ("--socket-path", str(daemon.socket_path), "--memory", "256M", "--events", str(events))
        result = subprocess.run(
            [sys.executable, "-m", "guest.linux", *words, "--", "sh", "-c", SCRIPT],
            capture_output=True,
            cwd=ROOT,
            text=True,
            timeout=LIMIT,
            check=True,
        )
    memory = [event for line in events.read_text().splitlines() if (event := json.loads(line))["event"] == "memory"][-1]
    zoneinfo, buddyinfo = result.stdout.split("===\n")
    ledger = linux_ledger(
        parse_zones(zoneinfo, buddyinfo),
        memory_bytes=memory["memory_bytes"],
        resident_bytes=memory["resident_bytes"],
        order=MAX_ORDER,  # User Mode Linux has no huge pages
        is_reporting=is_reporting,
    )
    holes = memory["memory_bytes"] - memory["resident_bytes"]
    assert ledger.not_returned_bytes == max(0, ledger.free_bytes - holes)
    assert ledger.free_bytes > 120 * MIB
    return ledger


def test_free_memory_of_a_living_kernel_is_returned_but_for_small_blocks(tmp_path: Path) -> None:
    held = ledger_of_a_kernel(tmp_path, is_reporting=True).held_bytes
    assert held[Cause.UNKNOWN] < 8 * MIB
    assert held[Cause.INHIBITED] == 0


def test_kernel_that_does_not_report_keeps_what_it_has_used(tmp_path: Path) -> None:
    held = ledger_of_a_kernel(tmp_path, is_reporting=False).held_bytes
    assert held[Cause.INHIBITED] > 80 * MIB
    assert held[Cause.UNKNOWN] == 0
