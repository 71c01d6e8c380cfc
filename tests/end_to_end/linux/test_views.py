"""The memory views of a living kernel, held against how this project would write the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from guest.mm.views.vmstat import format_buddyinfo, format_pagetypeinfo
from guest.mm.views.vmstat_zoneinfo import LINUX_6_1, LINUX_7_2, format_zoneinfo
from tests.guest.mm.views.proc_text import parse_buddyinfo, parse_pagetypeinfo, parse_zoneinfo
from tests.harness.processes import ROOT, DaemonProcess

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

FORMS = {"6.1": LINUX_6_1, "7.2": LINUX_7_2}

LIMIT = 90
"""Seconds for a boot and a short command; ordinary is 2.5 s."""


def test_views_of_a_living_kernel_are_written_the_same(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        script = "uname -r; for view in buddyinfo pagetypeinfo zoneinfo; do echo ===; cat /proc/$view; done"
        words = ("--socket-path", str(daemon.socket_path), "--memory", "256M", "--", "sh", "-c", script)
        result = subprocess.run(
            [sys.executable, "-m", "guest.linux", *words],
            capture_output=True,
            cwd=ROOT,
            text=True,
            timeout=LIMIT,
            check=True,
        )
    release, buddyinfo, pagetypeinfo, zoneinfo = result.stdout.split("===\n")
    assert "".join(format_buddyinfo(*line) for line in parse_buddyinfo(buddyinfo)) == buddyinfo
    order, names, zones = parse_pagetypeinfo(pagetypeinfo)
    assert format_pagetypeinfo(zones, pageblock_order=order, names=names) == pagetypeinfo
    form = FORMS.get(".".join(release.split(".")[:2]))
    if form is None:
        pytest.skip(f"zoneinfo is written as Linux {' and '.join(FORMS)} do, this is {release.strip()}")
    assert "".join(format_zoneinfo(zone, form) for zone in parse_zoneinfo(zoneinfo, form)) == zoneinfo
