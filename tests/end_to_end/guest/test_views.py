"""balloon-guest as a process: its views at the end and while it runs, and a run recorded and replayed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.control import ask
from guest.mm.views.buddyinfo import parse_buddyinfo
from guest.mm.views.free_lists import parse_free_lists
from tests.harness.processes import DEADLINE, ROOT, DaemonProcess, ProgramProcess

VIEWS = ("buddyinfo", "pagetypeinfo", "zoneinfo", "unusable_index")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as running:
        yield running


def guest(*options: str) -> subprocess.CompletedProcess[str]:
    """Run balloon-guest to its end."""
    return subprocess.run(
        [sys.executable, "-m", "guest", *options],
        capture_output=True,
        cwd=ROOT,
        text=True,
        timeout=DEADLINE * 2,
        check=False,
    )


def run_workload(daemon: DaemonProcess, *options: str) -> str:
    """Run a guest of 64 MiB without reporting, whose lists depend on its workload alone; return what it printed."""
    machine = ("--socket-path", str(daemon.socket_path), "--memory", "64M", "--reporter", "off")
    result = guest(*machine, *options)
    assert (result.returncode, result.stderr) == (0, "")
    verified, _, views = result.stdout.partition("\n")
    assert verified.endswith("corrupted 0")
    return views


def test_views_at_the_end_come_in_the_order_asked_for(daemon: DaemonProcess) -> None:
    options = [option for view in VIEWS for option in ("--print", view)]
    text = run_workload(daemon, "--workload", "memhog:size=8M,hold=0", *options)
    begins = [
        "Node 0, zone   Normal ",
        "Page block order: 9\n",
        "Node 0, zone   Normal\n  per-node",
        "protection: (0, 0)\n",
    ]
    places = [text.index(begin) for begin in begins]
    assert places == sorted(places)
    assert text.endswith(" \n")


def test_recorded_churn_is_replayed_into_the_identical_buddyinfo(daemon: DaemonProcess, tmp_path: Path) -> None:
    """The churn is stopped half way, so what it holds shows; its frees and allocations are what the replay repeats."""
    trace = tmp_path / "churn.trace"
    churn = ("--workload", "churn:size=24M,seconds=3600,lifetime=0.2", "--duration", "0.5", "--seed", "4")
    recorded = run_workload(daemon, *churn, "--record", str(trace), "--print", "buddyinfo", "--print", "pagetypeinfo")
    replayed = run_workload(daemon, "--workload", f"trace:{trace}", "--print", "buddyinfo", "--print", "pagetypeinfo")
    assert replayed == recorded
    untouched = run_workload(daemon, "--workload", "idle:seconds=0.01", "--print", "buddyinfo")
    assert not recorded.startswith(untouched)


def test_full_disk_ends_the_recording_and_not_the_guest(daemon: DaemonProcess) -> None:
    machine = ("--socket-path", str(daemon.socket_path), "--memory", "64M", "--reporter", "off")
    result = guest(*machine, "--workload", "memhog:size=8M,order=0,hold=0", "--record", "/dev/full")
    assert (result.returncode, result.stdout) == (0, "verified 2048 pages, corrupted 0\n")
    assert result.stderr == ("balloon-guest: --record /dev/full: No space left on device; the recording ends there\n")


def test_running_guest_answers_at_its_control_socket(daemon: DaemonProcess, tmp_path: Path) -> None:
    control = tmp_path / "control"
    options = ("--socket-path", str(daemon.socket_path), "--memory", "64M", "--control", str(control))
    with ProgramProcess("guest", *options) as running:
        running.events.wait("booted")
        for view in VIEWS:
            asked = guest("--ask", str(control), view)
            assert (asked.returncode, asked.stderr, asked.stdout) == (0, "", ask(control, view))
        assert {view.zone for view in parse_free_lists(ask(control, "free_lists"))} == {"Normal"}
        assert list(parse_buddyinfo(ask(control, "buddyinfo"))) == [(0, "Normal")]
        assert ask(control, "help").split() == [*VIEWS, "free_lists", "stop", "cont", "reset", "help"]
        unknown = guest("--ask", str(control), "slabinfo")
        assert unknown.returncode == 1
        assert "unknown command 'slabinfo', known are buddyinfo" in unknown.stderr
        second = guest(*options)
        assert second.returncode == 1
        assert "another process listens there" in second.stderr
        assert running.stop() == 0
    assert not control.exists()


def test_zones_of_a_real_machine_with_per_cpu_lists(daemon: DaemonProcess) -> None:
    options = ("--zones", "x86-64", "--kernelcore", "32M", "--cpus", "2", "--cma", "4M", "--shuffle")
    text = run_workload(daemon, *options, "--workload", "build:size=24M,seconds=0.4", "--print", "zoneinfo")
    zones = [line.split()[-1] for line in text.splitlines() if line.startswith("Node")]
    assert zones == ["DMA", "DMA32", "Normal", "Movable"]
    assert "        cma      1024\n" in text
    assert text.count("    cpu: 1\n") == 3


def test_machine_with_a_hole_begins_with_its_buddyinfo(daemon: DaemonProcess, tmp_path: Path) -> None:
    # An idle q35 of 6 GiB: 2 GiB below 4 GiB.
    text = (
        "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n"
        "Node 0, zone    DMA32      4      5      3      4      3      3      3      3      4      2     60 \n"
        "Node 0, zone   Normal     37     60     81     54     30     21     16     10      7      5    969 \n"
    )
    path = tmp_path / "buddyinfo"
    path.write_text(text, encoding="ascii")
    options = ["--memory", "6G", "--buddyinfo", str(path), "--workload", "page_fault1:size=16M,repeat=1"]
    result = guest("--socket-path", str(daemon.socket_path), *options)
    assert result.returncode == 0, result.stderr
    assert "corrupted 0" in result.stdout
    assert daemon.events.wait("memory", regions=2)["bytes"] == 6 << 30
    refused = guest("--socket-path", str(daemon.socket_path), *options, "--pci-hole", "none")
    assert refused.returncode == 2
    assert "--memory, --zones and --pci-hole decide the zones" in refused.stderr


def test_tasks_of_a_workload_use_the_page_lists_of_all_cpus(daemon: DaemonProcess) -> None:
    options = ("--cpus", "3", "--workload", "page_fault2:tasks=3,size=1M,repeat=2")
    text = run_workload(daemon, *options, "--print", "zoneinfo")
    counts = re.findall(r"    cpu: (\d)\n +count: +(\d+)\n", text)
    assert [cpu for cpu, _ in counts] == ["0", "1", "2"]
    assert all(int(count) > 0 for _, count in counts)


@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        ((), 2, "--socket-path PATH is missing"),
        (("--socket-path", "s", "--record", "/"), 1, "--record /: Is a directory"),
        (("--socket-path", "s", "--control", "/"), 1, "--control /: exists and is not a socket"),
        (
            ("--socket-path", "s", "--kernelcore", "32M"),
            2,
            "--kernelcore makes a Movable zone, which needs --zones x86-64",
        ),
        (("--socket-path", "s", "--pci-hole", "q35"), 2, "--pci-hole needs --zones x86-64"),
        (("--socket-path", "s", "--pci-hole", "1"), 2, "a PCI hole of 1 bytes is not whole pages from 0 to 4080M"),
        (("--socket-path", "s", "--print", "meminfo"), 2, "invalid choice: 'meminfo'"),
        (("--socket-path", "s", "--buddyinfo", "/nowhere"), 1, "--buddyinfo /nowhere: No such file or directory"),
        (("--socket-path", "s", "--buddyinfo", "/bin/sh"), 2, "--buddyinfo /bin/sh: 'ascii' codec can't decode"),
        (("--socket-path", "s", "--events", "/"), 1, "--events /: Is a directory"),
        (("--socket-path", "s", "--workload", "trace:/nowhere"), 1, "trace: /nowhere: No such file or directory"),
        (("--socket-path", "s", "--workload", "trace:/dev/null"), 2, "/dev/null:1:1: the file is empty"),
        (("--ask", "", "buddyinfo"), 2, "an empty path"),
        (("--ask", "/nowhere", "buddyinfo"), 1, "/nowhere: No such file or directory"),
    ],
)
def test_error_is_one_line(options: tuple[str, ...], status: int, complaint: str) -> None:
    result = guest(*options)
    assert result.returncode == status
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1
