"""The same free lists under a real kernel and under the emulated guest's ``rotation``: the daemon sees the same.

Linux 6.1 or 7.2 under User Mode Linux, whichever is installed (6.1 is fetched where none is): one zone, pageblocks of
order 10, so that only whole blocks of MAX_ORDER are reported, unless ``page_reporting_order`` is lowered (there a write
to it counts from the next pass on).

Each real guest tells its /proc/buddyinfo after the balloon driver came up and before its first pass, and then does
nothing that needs memory: forking a process splits and merges blocks. An emulated guest begins with the same lists, at
the same daemon; a simulation does so in virtual time. All guests run side by side.

Seconds between passes are 2.08 in the real guest and not 2.00: with HZ=100 a timer of 200 jiffies is filed in the
second level of the timer wheel, whose slots are 8 jiffies wide and expire a slot later (kernel/time/timer.c).
"""

import itertools
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest.linux.kernel_command_line import parse_memory
from guest.linux_profile import PROFILES
from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.reporters import make_reporter
from guest.mm.views.buddyinfo import parse_buddyinfo, shape_memory
from guest.simulation import Simulation
from guest.workloads.workload_options import parse_workload
from protocol.memory import PAGE_SIZE
from protocol.units import MIB
from tests.harness.processes import DaemonProcess, Event, ProgramProcess, until

pytestmark = pytest.mark.real_kernel

ORDER = 10
IDLE = {"256M": ("256M", ORDER), "512M": ("512M", ORDER), "1G": ("1G", ORDER), "order 5": ("512M", 5)}
"""Memory and reporting order by name. Lists of orders below 5 do not hold still even in an idle guest."""
SMALL_SIZE = "128M"
"""Less than the low watermark and a report of 32 blocks of 4 MiB: the zone is left alone."""
IDLE_SECONDS = 11
"""Four passes and some silence."""

FILL_SIZE = "512M"
FILLED = 300 * MIB
FILL_AT, FREE_AT, FILL_SECONDS = 7, 8, 15
"""Seconds: the idle passes are over, two more passes fit after them."""

APART = 1.0
"""Reports within this many seconds of each other are of one pass."""

BOOT = 120.0

# `start` forks what the wait needs first and lets the guest settle; from there on only builtins run.
SCRIPT = """
echo {order} >/sys/module/page_reporting/parameters/page_reporting_order
mkfifo /tmp/end
({work}; echo >/tmp/end) &
sleep 0.3
while read -r line; do echo "$line"; done </proc/buddyinfo
echo told
read -r end </tmp/end
"""


@dataclass(frozen=True)
class Pair:
    """What the daemon saw of a real guest and of the emulated one that began with its free lists."""

    buddyinfo: str
    memory: int
    order: int
    workload: str
    real: list[Event]
    emulated: list[Event]


def passes(reports: list[Event]) -> list[list[Event]]:
    """Return the reports pass by pass."""
    found: list[list[Event]] = []
    for report in reports:
        begin = report["t"] - report["seconds"]  # on a busy machine a discard takes longer than APART
        if not found or begin - found[-1][-1]["t"] > APART:
            found.append([])
        found[-1].append(report)
    return found


def entries(reports: list[Event]) -> list[list[int]]:
    """Return the entries of each report, pass by pass."""
    return [[report["ranges"] for report in of_pass] for of_pass in passes(reports)]


def nr_free(pair: Pair) -> tuple[int, ...]:
    """Return the free blocks of each order that a pair began with: of the one zone that has any."""
    (found,) = (counts for counts in parse_buddyinfo(pair.buddyinfo).values() if any(counts))
    return found


def reported_bytes(reports: list[Event]) -> int:
    """Return the bytes in all reports."""
    return sum(report["bytes"] for report in reports)


def seconds_between_passes(reports: list[Event]) -> list[float]:
    """Return the seconds from the beginning of each pass to that of the next."""
    begins = [of_pass[0]["t"] for of_pass in passes(reports)]
    return [later - earlier for earlier, later in itertools.pairwise(begins)]


def simulate(pair: Pair) -> Simulation:
    """Return a minute of a guest that begins with the same free lists and does the same."""
    allocator = PageAllocator(pair.memory // PAGE_SIZE, pageblock_order=ORDER, move_to_tail=True)
    shape_memory(allocator, pair.buddyinfo)
    reporter = make_reporter("rotation", allocator, order=pair.order)
    simulation = Simulation(allocator, reporter, [parse_workload(pair.workload)])
    simulation.run(60.0)
    return simulation


def trace_of_fill(path: Path) -> Path:
    """Write a trace that takes single pages at once, as a file in tmpfs does, and gives them back."""
    pages = range(FILLED // PAGE_SIZE)
    lines = ["balloon-trace 1"]
    lines += [f"{FILL_AT} alloc {number} 0" for number in pages]
    lines += [f"{FREE_AT} free {number}" for number in pages]
    lines.append(f"{FILL_SECONDS} phase over")
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


class Guests:
    """Real guests and their emulated twins, all at one daemon, to be run to their ends."""

    def __init__(self, daemon: DaemonProcess, directory: Path, stack: ExitStack, profile: str) -> None:
        self._daemon = daemon
        self._profile = profile
        self._directory = directory
        self._stack = stack
        self._real: dict[str, ProgramProcess] = {}
        self._what: dict[str, tuple[str, int, str]] = {}
        self._emulated: dict[str, ProgramProcess] = {}

    def boot(self, name: str, memory: str, order: int, work: str, workload: str) -> None:
        """Start a real guest; ``workload`` is what its twin will do."""
        self._what[name] = memory, order, workload
        script = SCRIPT.format(order=order, work=work)
        options = ("--socket-path", str(self._daemon.socket_path), "--memory", memory)
        guest = ProgramProcess("guest.linux", *options, "--", "sh", "-c", script)
        self._real[name] = self._stack.enter_context(guest)

    def buddyinfo(self, name: str) -> str:
        """Wait for a real guest to tell its free lists."""
        guest = self._real[name]
        until(lambda: "told\n" in guest.stdout(), f"{name} tells its buddyinfo", deadline=BOOT)
        return guest.stdout().removesuffix("told\n")

    def start_twin(self, name: str) -> None:
        """Start the emulated guest with the free lists that the real one told."""
        path = self._directory / f"{name}.buddyinfo"
        path.write_text(self.buddyinfo(name), encoding="ascii")
        memory, order, workload = self._what[name]
        options = ["--socket-path", str(self._daemon.socket_path), "--memory", memory, "--buddyinfo", str(path)]
        options += ["--reporter", "rotation", "--reporting-order", str(order), "--workload", workload]
        options += ["--profile", self._profile]
        guest = ProgramProcess("guest", *options)
        self._emulated[name] = self._stack.enter_context(guest)

    def finish(self, name: str) -> Pair:
        """Wait for both to end and return what the daemon saw of them."""
        real, twin = self._real[name], self._emulated[name]
        memory, order, workload = self._what[name]
        buddyinfo = self.buddyinfo(name)
        assert real.wait(BOOT) == 0
        assert twin.wait(BOOT) == 0
        kernel_pid = real.events.all("booted")[0]["pid"]
        return Pair(
            buddyinfo, parse_memory(memory), order, workload, self._reports(kernel_pid), self._reports(twin.pid)
        )

    def _reports(self, pid: int) -> list[Event]:
        events = self._daemon.events
        vm = events.all("connected", pid=pid)[0]["vm"]
        self._daemon.settled(vm)
        return events.all("report", vm=vm)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, kernel_release: str) -> Iterator[dict[str, Pair]]:
    """Every pair of guests by name: the size of an idle one, or ``fill``."""
    profile = ".".join(kernel_release.split(".")[:2])
    if profile not in PROFILES:
        pytest.skip(f"there is no profile of Linux {kernel_release}, only of {', '.join(PROFILES)}")
    directory = tmp_path_factory.mktemp("parity")
    fill = f"sleep {FILL_AT}; dd if=/dev/zero of=/tmp/fill bs=1M count={FILLED // MIB} 2>/dev/null; "
    fill += f"sleep {FREE_AT - FILL_AT}; rm /tmp/fill; sleep {FILL_SECONDS - FREE_AT}"
    with ExitStack() as stack:
        guests = Guests(stack.enter_context(DaemonProcess(directory)), directory, stack, profile)
        guests.boot("fill", FILL_SIZE, ORDER, fill, f"trace:{trace_of_fill(directory / 'fill.trace')}")
        for name, (memory, order) in {SMALL_SIZE: (SMALL_SIZE, ORDER), **IDLE}.items():
            guests.boot(name, memory, order, f"sleep {IDLE_SECONDS}", f"idle:seconds={IDLE_SECONDS}")
        for name in ("fill", SMALL_SIZE, *IDLE):
            guests.start_twin(name)
        yield {name: guests.finish(name) for name in (SMALL_SIZE, *IDLE, "fill")}


@pytest.mark.parametrize("name", IDLE)
def test_idle_guest_makes_the_same_reports(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    assert entries(pair.real) == entries(pair.emulated)
    assert [report["bytes"] for report in pair.real] == [report["bytes"] for report in pair.emulated]
    # All that was free in blocks large enough, and nothing twice.
    free = sum(count * (PAGE_SIZE << order) for order, count in enumerate(nr_free(pair)) if order >= pair.order)
    assert reported_bytes(pair.real) == free


@pytest.mark.parametrize("name", IDLE)
def test_virtual_time_predicts_the_real_kernel(pairs: dict[str, Pair], name: str) -> None:
    pair = pairs[name]
    assert simulate(pair).entries_by_pass() == entries(pair.real)


def test_guest_that_a_report_would_leave_without_memory_makes_none(pairs: dict[str, Pair]) -> None:
    pair = pairs[SMALL_SIZE]
    assert nr_free(pair)[ORDER] > 0
    assert (pair.real, pair.emulated) == ([], [])
    assert simulate(pair).reports == []


def test_passes_are_as_far_apart_as_predicted(pairs: dict[str, Pair]) -> None:
    real = [seconds for name in IDLE for seconds in seconds_between_passes(pairs[name].real)]
    begins = [report.begin for report in simulate(pairs["1G"]).reports[::2]]
    predicted = statistics.median(later - earlier for earlier, later in itertools.pairwise(begins))
    assert statistics.median(real) == pytest.approx(predicted, rel=0.1)


def test_memory_filled_and_freed_comes_back_in_as_many_passes(pairs: dict[str, Pair]) -> None:
    pair = pairs["fill"]
    assert len(passes(pair.real)) == len(passes(pair.emulated))
    assert reported_bytes(pair.emulated) == pytest.approx(reported_bytes(pair.real), rel=0.05)
    # Virtual time predicts the emulated guest to the last entry, the real one but for pages that `dd` and `rm` keep.
    foreseen = simulate(pair).entries_by_pass()
    assert entries(pair.emulated) == foreseen
    assert entries(pair.real)[:-1] == foreseen[:-1]
    for reports in (pair.real, pair.emulated):
        # The file's memory was discarded: it had been touched.
        assert sum(report["discarded_bytes"] for report in reports) >= FILLED * 0.9
