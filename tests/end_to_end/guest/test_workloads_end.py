"""The emulated guest as a person runs it, at a real daemon: what it says, what comes back to the host, how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from host.memory.discard import punch_hole
from protocol.memory import PAGE_SIZE
from tests.harness.processes import DaemonProcess, Event, ProgramProcess, open_fds, until

MIB: Final = 1 << 20
MEMORY: Final = ("--memory", "64M")
SIZE: Final = 32 * MIB
PAGES: Final = SIZE // PAGE_SIZE
REPORTERS: Final = {
    "boundary": ("--reporter", "boundary", "--high-water-mark", "1"),
    "rotation": ("--reporter", "rotation", "--reporting-delay", "0.1", "--reporting-capacity", "8"),
}
"""Such that every block from the reporting order up is reported, and soon. Rotation, as Linux, begins only when a whole
report's worth of blocks above the low watermark is free: 32 blocks of order 9 would be all of this memory."""

OVERHEAD: Final = MIB // 2
"""More than the rings cost, which stay in use."""

BUDDYINFO: Final = re.compile(r"Node 0, zone   Normal (?: *\d+ ){11}\n")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


def guest_at(daemon: DaemonProcess, *options: str) -> ProgramProcess:
    """Start a guest at ``daemon``. As a context manager it must leave with status 0 and a clean standard error."""
    return ProgramProcess("guest", "--socket-path", str(daemon.socket_path), *MEMORY, *options)


@contextlib.contextmanager
def complaining_guest(*options: str) -> Iterator[ProgramProcess]:
    """Start a guest that a test expects to say something on standard error, or to leave with another status than 0."""
    guest = ProgramProcess("guest", *options)
    try:
        yield guest
    finally:
        guest.kill()


def last_memory(guest: ProgramProcess) -> Event:
    """Return the newest ``memory`` event."""
    return guest.events.wait_for_count("memory", 1)[-1]


def wait_for_phase(guest: ProgramProcess, name: str) -> None:
    """Wait until a workload says that this phase has begun."""
    until(lambda: any(event["name"] == name for event in guest.events.all("phase")), f"phase {name}")


def one_line(guest: ProgramProcess) -> str:
    """Return what the guest has said, which must be one line that begins with its name."""
    assert re.fullmatch(r"balloon-guest: [^\n]+\n", guest.stderr()), guest.stderr()
    return guest.stderr().removeprefix("balloon-guest: ")


# -- how it is called -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--memory 1Q", "not a size: '1Q'"),
        ("--memory 67108865", "'67108865' is not a whole number of 4096-byte pages"),
        ("--memory 8M", "'8M' is not from 16M to 16T"),
        ("--memory 17T", "'17T' is not from 16M to 16T"),
        ("--workload sleep", "unknown workload 'sleep', known are idle, memhog, churn"),
        ("--workload memhog:colour=3", "unknown option 'colour=3'"),
        ("--workload memhog:size=much", "size=much is not a size: 'much'"),
        ("--workload memhog:order=11", "order=11 is not from 0 to 10"),
        ("--workload churn:tick=0", "tick=0 is out of range"),
        ("--reporting-order 11", "reporting order 11 is not within 0 and 10"),
        ("--reporting-capacity 0", "reporting capacity 0 is not at least 1"),
        ("--reporter rotation --high-water-mark 8", "the rotation reporter has no high-water mark"),
        ("--page-poison 256", "'256' is not from 0 to 0xff"),
        ("--duration inf", "'inf' is not a number of seconds"),
        ("--no-such-option", "--no-such-option"),
    ],
)
def test_usage_error_is_one_line_and_status_2(options: str, complaint: str, tmp_path: Path) -> None:
    with complaining_guest("--socket-path", str(tmp_path / "socket"), *options.split()) as guest:
        assert guest.wait() == 2
        assert complaint in one_line(guest)
        assert guest.stdout() == ""
        assert guest.events.all() == []


def test_socket_path_cannot_be_left_out() -> None:
    with complaining_guest(*MEMORY) as guest:
        assert guest.wait() == 2
        assert "--socket-path" in one_line(guest)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"),
        ("file", "Connection refused"),
        ("left_over", "Connection refused"),
        ("x" * 200, "AF_UNIX path too long"),
    ],
)
def test_path_without_a_listener_is_one_line_and_status_1(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "left_over"))
    with complaining_guest("--socket-path", str(tmp_path / name), *MEMORY) as guest:
        assert guest.wait() == 1
        assert one_line(guest) == f"no back-end at {tmp_path / name}: {reason}\n"
        assert guest.stdout() == ""
        assert guest.events.all("booted") == []


# -- memory goes and comes back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reporter", REPORTERS)
def test_pages_that_a_memhog_freed_come_back_to_the_host(reporter: str, daemon: DaemonProcess) -> None:
    with guest_at(daemon, *REPORTERS[reporter], "--workload", f"memhog:size={SIZE},hold=1", "--hold") as guest:
        wait_for_phase(guest, "free")
        held = [event for event in guest.events.all("memory") if event["allocated_bytes"] == SIZE]
        assert [event["resident_bytes"] for event in held] != []
        assert all(SIZE <= event["resident_bytes"] <= SIZE + OVERHEAD for event in held)

        finished = guest.events.wait("finished")
        assert (finished["verified_pages"], finished["corrupted_pages"]) == (PAGES, 0)
        until(lambda: last_memory(guest)["resident_bytes"] <= OVERHEAD, "everything is back with the host")
        assert last_memory(guest)["reported_bytes"] >= 60 * MIB
        assert guest.stop() == 0
        assert guest.stdout() == f"verified {PAGES} pages, corrupted 0\n"

        vm = daemon.events.wait_for_count("connected", 1, pid=guest.pid)[0]["vm"]
        summary = daemon.settled(vm)
        told, taken = guest.events.all("report"), daemon.events.all("report", vm=vm)
        assert [(event["entries"], event["bytes"]) for event in told] == [
            (event["ranges"], event["bytes"]) for event in taken
        ]
        assert all(event["discarded_bytes"] == event["bytes"] for event in taken)
        assert summary["reports"] == len(told)
        assert summary["discarded_bytes"] == sum(event["bytes"] for event in told) >= SIZE
        assert summary["refused"] == {}


@pytest.mark.parametrize("reporter", REPORTERS)
def test_pages_in_use_survive_while_everything_is_reported_at_once(reporter: str, daemon: DaemonProcess) -> None:
    with guest_at(
        daemon,
        *REPORTERS[reporter],
        *("--reporting-delay", "0", "--reporting-order", "2"),
        *("--workload", "churn:size=16M,seconds=1,lifetime=0.05"),
        *("--workload", "memhog:size=16M,order=6,hold=0.1,rest=0.1,repeat=4"),
    ) as guest:
        assert guest.wait() == 0
        (finished,) = guest.events.all("finished")
        assert finished["verified_pages"] > 4 * 16 * MIB // PAGE_SIZE
        assert finished["corrupted_pages"] == 0
        assert len(guest.events.all("report")) > 10
        assert last_memory(guest)["allocated_bytes"] == 0


def test_report_keeps_to_capacity_and_order(daemon: DaemonProcess) -> None:
    options = ("--reporter", "boundary", "--reporting-order", "10", "--reporting-capacity", "3")
    with guest_at(daemon, *options) as guest:
        reports = guest.events.wait_for_count("report", 2)
        assert {event["entries"] for event in reports[:2]} == {3}
        assert {event["bytes"] for event in reports[:2]} == {3 * 4 * MIB}


def test_reporter_off_reports_nothing_and_returns_nothing(daemon: DaemonProcess) -> None:
    with guest_at(daemon, "--reporter", "off", "--workload", f"memhog:size={SIZE},hold=0,rest=0.6") as guest:
        assert guest.wait() == 0
        assert guest.stdout() == f"verified {PAGES} pages, corrupted 0\n"
        assert guest.events.all("report") == []
        memory = last_memory(guest)
        assert (memory["allocated_bytes"], memory["reported_bytes"]) == (0, 0)
        assert memory["resident_bytes"] >= SIZE
        vm = daemon.events.wait_for_count("connected", 1, pid=guest.pid)[0]["vm"]
        assert daemon.settled(vm)["reports"] == 0


# -- how long it runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_hold_stays_attached_until_a_signal(number: signal.Signals, daemon: DaemonProcess) -> None:
    with guest_at(daemon, "--workload", f"memhog:size={SIZE},hold=0", "--hold") as guest:
        guest.events.wait("finished")
        for _ in range(2):
            guest.events.wait("memory")
        assert guest.process.poll() is None
        assert guest.events.all("detached") == []
        guest.signal(number)
        assert guest.wait() == 0
        assert [event["reason"] for event in guest.events.all("detached")] == ["machine powered off"]
        assert len(guest.events.all("finished")) == 1


def test_signal_ends_a_workload_and_what_it_holds_is_verified(daemon: DaemonProcess) -> None:
    with guest_at(daemon, "--workload", f"memhog:size={SIZE},hold=3600") as guest:
        wait_for_phase(guest, "hold")
        assert guest.stop() == 0
        assert guest.stdout() == f"verified {PAGES} pages, corrupted 0\n"
        assert last_memory(guest)["allocated_bytes"] == SIZE
        assert [event["name"] for event in guest.events.all("phase")] == ["fill", "hold"]


@pytest.mark.parametrize(("workload", "pages"), [("idle", 0), ("memhog:size=4M,hold=3600", 1024)])
def test_duration_ends_what_would_go_on(workload: str, pages: int, daemon: DaemonProcess) -> None:
    with guest_at(daemon, "--workload", workload, "--duration", "0.5") as guest:
        assert guest.wait() == 0
        (booted,), (finished,) = guest.events.all("booted"), guest.events.all("finished")
        assert finished["t"] - booted["t"] >= 0.49
        assert finished["verified_pages"] == pages


# -- what it prints ---------------------------------------------------------------------------------------------------


def buddyinfo_bytes(text: str) -> int:
    """Return the bytes of all free blocks that one line of buddyinfo counts."""
    counts = map(int, text.split("Normal")[1].split())
    return sum(count * PAGE_SIZE << order for order, count in enumerate(counts))


def test_sigusr1_prints_buddyinfo_while_it_runs(daemon: DaemonProcess) -> None:
    with guest_at(daemon, "--reporter", "off") as guest:
        guest.events.wait("booted")
        for times in (1, 2):
            guest.signal(signal.SIGUSR1)
            until(lambda times=times: guest.stdout().count("\n") == times, "a line of buddyinfo")  # type: ignore[misc]
        assert guest.process.poll() is None
        assert re.fullmatch(f"({BUDDYINFO.pattern})\\1", guest.stdout())
        assert buddyinfo_bytes(guest.stdout().splitlines()[0]) == last_memory(guest)["free_bytes"]


def test_buddyinfo_at_the_end_is_the_kernels_format(daemon: DaemonProcess) -> None:
    with guest_at(daemon, "--reporter", "off", "--workload", "idle:seconds=0.01", "--print", "buddyinfo") as guest:
        assert guest.wait() == 0
        verdict, line = guest.stdout().splitlines(keepends=True)
        assert verdict == "verified 0 pages, corrupted 0\n"
        assert BUDDYINFO.fullmatch(line)
        assert buddyinfo_bytes(line) == last_memory(guest)["free_bytes"]


def test_events_on_standard_output_have_it_for_themselves(daemon: DaemonProcess) -> None:
    with complaining_guest(
        *("--socket-path", str(daemon.socket_path), *MEMORY, "--events", "-"),
        *("--workload", f"memhog:size={SIZE},hold=0", "--print", "buddyinfo"),
    ) as guest:
        assert guest.wait() == 0
        events = [json.loads(line) for line in guest.stdout().splitlines()]
        assert [event["event"] for event in events[:2]] == ["attached", "booted"]
        assert [event["event"] for event in events[-2:]] == ["finished", "detached"]
        phases = [event["name"] for event in events if event["event"] == "phase"]
        assert phases == ["fill", "hold", "free", "rest"]
        assert events == sorted(events, key=lambda event: float(event["t"]))
        assert re.fullmatch(f"verified {PAGES} pages, corrupted 0\n{BUDDYINFO.pattern}", guest.stderr())


def test_seed_repeats_a_random_workload(daemon: DaemonProcess) -> None:
    # So much memory that an allocation always succeeds, also while the device keeps the blocks of a report.
    options = ("--memory", "512M", "--workload", "churn:size=8M,seconds=0.5,lifetime=0.1", "--seed")
    with guest_at(daemon, *options, "1") as one, guest_at(daemon, *options, "1") as same:
        with guest_at(daemon, *options, "2") as other:
            verified = [guest.events.wait("finished")["verified_pages"] for guest in (one, same, other)]
            assert [guest.wait() for guest in (one, same, other)] == [0, 0, 0]
        assert verified[0] == verified[1] > 8 * MIB // PAGE_SIZE
        assert verified[2] != verified[0]


# -- when it goes wrong -----------------------------------------------------------------------------------------------


def test_out_of_memory_is_an_event_a_line_and_status_1(daemon: DaemonProcess) -> None:
    with complaining_guest(
        *("--socket-path", str(daemon.socket_path), "--memory", "16M", "--workload", "memhog:size=64M")
    ) as guest:
        assert guest.wait() == 1
        assert one_line(guest) == "out of memory: no block of order 9 came free\n"
        (event,) = guest.events.all("out_of_memory")
        assert event["reason"] == "out of memory: no block of order 9 came free"
        (finished,) = guest.events.all("finished")
        assert finished["verified_pages"] >= 10 * MIB // PAGE_SIZE
        assert finished["corrupted_pages"] == 0
        assert last_memory(guest)["allocated_bytes"] == 0


@contextlib.contextmanager
def memory_of(guest: ProgramProcess) -> Iterator[int]:
    """Open the memory file of a guest, as another process can."""
    number = next(fd for fd, name in open_fds(guest.pid).items() if name.startswith("/memfd:guest-ram"))
    fd = os.open(f"/proc/{guest.pid}/fd/{number}", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


def a_page_in_use(fd: int) -> int:
    """Return the first page frame that holds a workload's pattern and is the hundredth of a block of order 9."""
    size = os.fstat(fd).st_size
    for pfn in range(100, size // PAGE_SIZE, 512):
        word = int.from_bytes(os.pread(fd, 8, pfn * PAGE_SIZE), "little")
        if word >> 36 and word & ((1 << 36) - 1) == pfn:
            return pfn
    raise AssertionError("no page is in use")


def test_pages_discarded_while_in_use_are_found_and_status_1(daemon: DaemonProcess) -> None:
    with complaining_guest(
        *("--socket-path", str(daemon.socket_path), *MEMORY),
        *("--workload", f"memhog:size={SIZE},hold=3600"),
    ) as guest:
        wait_for_phase(guest, "hold")
        with memory_of(guest) as fd:
            pfn = a_page_in_use(fd)
            assert punch_hole(fd, pfn * PAGE_SIZE, 3 * PAGE_SIZE) == 0
        assert guest.stop() == 1
        (event,) = guest.events.all("corrupted")
        assert (event["pfn"], event["order"], event["pages"]) == (pfn - 100, 9, 3)
        assert one_line(guest) == f"3 pages corrupted in the block of order 9 at pfn {pfn - 100:#x}\n"
        (finished,) = guest.events.all("finished")
        assert (finished["verified_pages"], finished["corrupted_pages"]) == (PAGES - 3, 3)
        assert guest.stdout() == f"verified {PAGES - 3} pages, corrupted 3\n"
