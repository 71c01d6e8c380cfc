"""What a guest does about a daemon that dies, stalls or was stalled from the beginning: it keeps its memory whole."""

import contextlib
import re
import signal
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.harness.processes import (
    DaemonProcess,
    Event,
    ProgramProcess,
    doomed_daemon,
    open_fds,
    process_state,
    until,
)

MIB: Final = 1 << 20
BUSY: Final = (
    *("--memory", "64M", "--high-water-mark", "4", "--reporting-delay", "0.02"),
    *("--workload", "memhog:size=32M,hold=0.1,rest=0.1,repeat=100000"),
)
"""A guest that frees and reports several times a second until it is stopped."""


class Guest(ProgramProcess):
    """A guest at a daemon that has not a quiet life: what it says on standard error is for the test to judge."""

    def __init__(self, socket_path: Path, *options: str) -> None:
        super().__init__("guest", "--socket-path", str(socket_path), *options)

    def __enter__(self) -> "Guest":
        return self

    @property
    def whole(self) -> int:
        """Bytes that are free or allocated when the device holds none."""
        return _accounted(self.events.wait_for_count("memory", 1)[0])

    def missing(self) -> int:
        """Return the bytes that were with the device when the newest ``memory`` event was written."""
        return self.whole - _accounted(self.events.all("memory")[-1])

    def wait_for_report(self) -> None:
        """Wait for a report that is acknowledged from now on."""
        count = len(self.events.all("report"))
        self.events.wait_for_count("report", count + 1)

    def wait_until_stuck(self) -> None:
        """Wait until a report is with a device that does not give it back: two times in a row memory is missing, and
        nothing was acknowledged in between."""

        def stuck() -> bool:
            newest = [event for event in self.events.all() if event["event"] in ("memory", "report")][-3:]
            names = [event["event"] for event in newest]
            return names == ["memory"] * 3 and all(_accounted(event) < self.whole for event in newest)

        until(stuck, "a report is outstanding")

    def expect_said(self, *patterns: str) -> None:
        """Check that standard error, of a guest that has ended, consists of these lines; take them as expected."""
        lines = self.stderr().splitlines()
        assert len(lines) == len(patterns), lines
        for line, pattern in zip(lines, patterns, strict=True):
            assert re.fullmatch(f"balloon-guest: {pattern}", line), line
        self.forget_stderr()

    def expect_whole_end(self) -> None:
        """Check that the guest, having ended, verified some pages and found none corrupted."""
        (finished,) = self.events.all("finished")
        assert finished["corrupted_pages"] == 0
        assert self.events.all("corrupted") == []
        assert self.stdout() == f"verified {finished['verified_pages']} pages, corrupted 0\n"


def _accounted(event: Event) -> int:
    return int(event["free_bytes"] + event["allocated_bytes"])


GONE: Final = r"back-end gone(: Connection reset by peer)?; waiting for a back-end at \S+"
BACK: Final = "attached again"


# -- daemons that die -------------------------------------------------------------------------------------------------


def test_guest_survives_daemons_that_are_killed_one_after_the_other(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with doomed_daemon(tmp_path) as daemon:
            guest = stack.enter_context(Guest(daemon.socket_path, *BUSY))
            guest.wait_for_report()
        for number in range(1, 4):
            guest.events.wait("detached")
            until(lambda: guest.missing() == 0, "every page is with the guest")
            with doomed_daemon(tmp_path) as daemon:
                guest.events.wait_for_count("attached", number + 1)
                daemon.events.wait("report")
                guest.wait_for_report()
        guest.events.wait("detached")
        assert guest.stop() == 0
        guest.expect_said(*[GONE, BACK] * 3, GONE)
        guest.expect_whole_end()
        assert len(guest.events.all("booted")) == 1


def test_report_outstanding_when_the_daemon_dies_comes_back_whole(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with doomed_daemon(tmp_path) as daemon:
            guest = stack.enter_context(Guest(daemon.socket_path, *BUSY))
            guest.wait_for_report()
            daemon.stall()
            guest.wait_until_stuck()
            missing = guest.missing()
            assert missing > 0
            assert missing % (2 * MIB) == 0  # whole blocks, four at most, of the reporting order or above
            assert missing <= 4 * 4 * MIB
        guest.events.wait("detached")
        until(lambda: guest.missing() == 0, "the blocks of the report are free again")

        with DaemonProcess(tmp_path) as successor:
            guest.events.wait("attached")
            successor.events.wait("report")
            guest.wait_for_report()
            assert guest.stop() == 0
            guest.expect_said(GONE, BACK)
            guest.expect_whole_end()
            assert successor.settled(1)["refused"] == {}


def test_daemon_that_leaves_politely_is_waited_for_as_well(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with DaemonProcess(tmp_path) as daemon:
            guest = stack.enter_context(Guest(daemon.socket_path, *BUSY))
            guest.wait_for_report()
        guest.events.wait("detached")
        with DaemonProcess(tmp_path) as daemon:
            daemon.events.wait("report")
            assert guest.stop() == 0
            guest.expect_said(GONE, BACK)
            guest.expect_whole_end()


def test_work_comes_to_its_end_without_a_daemon(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with doomed_daemon(tmp_path) as daemon:
            work = ("--workload", "memhog:size=32M,hold=0.5,repeat=2")
            guest = stack.enter_context(Guest(daemon.socket_path, "--memory", "64M", *work))
            until(lambda: len(guest.events.all("phase")) == 2, "all is filled")
        assert guest.wait() == 0
        guest.expect_said(GONE)
        guest.expect_whole_end()
        assert guest.stdout() == f"verified {2 * 32 * MIB // 4096} pages, corrupted 0\n"


def test_guest_that_waits_for_a_daemon_can_be_ended(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with doomed_daemon(tmp_path) as daemon:
            guest = stack.enter_context(Guest(daemon.socket_path, "--memory", "64M"))
            guest.events.wait("booted")
        guest.events.wait("detached")
        guest.events.wait("memory")
        assert guest.stop() == 0
        guest.expect_said(GONE)
        assert [event["reason"] for event in guest.events.all("detached")][1:] == ["machine powered off"]


# -- daemons that stall -----------------------------------------------------------------------------------------------


def test_stalled_daemon_that_goes_on_acknowledges_what_it_was_given(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon, Guest(daemon.socket_path, *BUSY) as guest:
        guest.wait_for_report()
        daemon.stall()
        guest.wait_until_stuck()
        acknowledged = len(guest.events.all("report"))
        daemon.resume()
        report = guest.events.wait_for_count("report", acknowledged + 1)[acknowledged]
        assert report["seconds"] >= 0.25  # two memory events were written meanwhile
        until(lambda: guest.missing() == 0, "the blocks of the report are free again")
        assert guest.stop() == 0
        guest.expect_whole_end()
        assert guest.events.all("detached", reason="machine powered off") == guest.events.all("detached")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_guest_can_be_ended_while_a_stalled_daemon_holds_its_report(number: signal.Signals, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon, Guest(daemon.socket_path, *BUSY) as guest:
        guest.wait_for_report()
        daemon.stall()
        guest.wait_until_stuck()
        guest.signal(number)
        assert guest.wait() == 0
        guest.expect_whole_end()
        daemon.resume()
        assert daemon.settled(1)["refused"] == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_guest_that_a_stalled_daemon_never_answered_can_be_ended(number: signal.Signals, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        daemon.stall()
        guest = Guest(daemon.socket_path, "--memory", "64M")
        try:
            until(lambda: is_waiting_for_an_answer(guest), "the guest has connected")
            guest.signal(number)
            assert guest.wait() == 1
            assert guest.events.all("booted") == []
            assert guest.stdout() == guest.stderr() == ""
        finally:
            guest.kill()
        daemon.resume()
        daemon.settled(1)


def is_waiting_for_an_answer(process: ProgramProcess) -> bool:
    """Whether a guest handles SIGTERM by now, has a socket beside the event loop's own two, and sleeps."""
    directory = Path(f"/proc/{process.pid}")
    status = (directory / "status").read_text(encoding="ascii")
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    sockets = sum(name.startswith("socket:") for name in open_fds(process.pid).values())
    return bool(caught & 1 << (signal.SIGTERM - 1)) and sockets == 3 and process_state(directory) == "S"


def test_successor_that_stalls_is_waited_for_and_the_guest_can_be_ended(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with doomed_daemon(tmp_path) as daemon:
            guest = stack.enter_context(Guest(daemon.socket_path, *BUSY))
            guest.wait_for_report()
            daemon.stall()
        daemon.socket_path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(daemon.socket_path))
            successor.listen()
            until(lambda: is_waiting_for_an_answer(guest), "the guest has connected again")
            count = len(guest.events.all("phase"))
            guest.events.wait_for_count("phase", count + 4)  # its work goes on
            until(lambda: guest.missing() == 0, "every page is with the guest")
            assert guest.stop() == 0
            guest.expect_said(GONE)
            guest.expect_whole_end()
