"""The emulated guest's balloon at a real daemon: the size that was asked for, and daemons that come and go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.processes import DaemonProcess, ProgramProcess, until

MIB: Final = 1 << 20
PAGES_OF_MIB: Final = 256


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[ProgramProcess]:
    """A guest of 256 MiB that has used nearly all of it, and waits for daemons since the first one has left."""
    with DaemonProcess(tmp_path) as daemon:
        options = ("--memory", "256M", "--reporter", "off", "--workload", "memhog:size=240M,hold=0", "--hold")
        guest = ProgramProcess("guest", "--socket-path", str(daemon.socket_path), *options)
        guest.events.wait("finished")
    guest.events.wait("detached")
    yield guest
    guest.forget_stderr()  # that daemons went away
    with guest:
        pass


def memory(guest: ProgramProcess, field: str) -> int:
    return int(guest.events.all("memory")[-1][field])


def test_balloon_comes_to_its_size_and_the_host_has_the_memory(guest: ProgramProcess, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, "--balloon", "192M") as daemon:
        assert guest.events.wait("inflate")["actual_pages"] == 192 * PAGES_OF_MIB
        until(lambda: memory(guest, "balloon_bytes") == 192 * MIB, "a memory event since")
        assert memory(guest, "resident_bytes") < 64 * MIB
        told = daemon.events.all("inflate")
        assert sum(event["bytes"] for event in told) == 192 * MIB
        assert max(event["bytes"] for event in told) == MIB
    with DaemonProcess(tmp_path, "--balloon", "10M") as daemon:
        event = guest.events.wait("deflate")
        assert (event["pages"], event["actual_pages"]) == (182 * PAGES_OF_MIB, 10 * PAGES_OF_MIB)
        assert guest.events.all("inflate") == guest.events.all("inflate", actual_pages=192 * PAGES_OF_MIB)


def test_daemon_that_dies_while_the_balloon_grows(guest: ProgramProcess, tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, "--balloon", "240M", "--guest-reserve", "0")
    daemon.events.wait_for_count("inflate", 10)
    daemon.kill()
    guest.events.wait("detached")
    until(lambda: memory(guest, "balloon_bytes") >= 10 * MIB, "a balloon that is kept")
    with DaemonProcess(tmp_path):
        until(lambda: memory(guest, "balloon_bytes") == 0, "an empty balloon")
        assert memory(guest, "free_bytes") > 255 * MIB


def test_target_larger_than_the_memory(guest: ProgramProcess, tmp_path: Path) -> None:
    """It takes what it can get, and waits for more without using up the processor."""
    with DaemonProcess(tmp_path, "--balloon", "1G", "--guest-reserve", "0") as daemon:
        full = guest.events.wait("inflate")
        assert 250 * PAGES_OF_MIB < full["actual_pages"] < 256 * PAGES_OF_MIB
        until(lambda: memory(guest, "balloon_bytes") == full["actual_pages"] * 4096, "a memory event since")
        assert memory(guest, "free_bytes") > 0
        assert len(daemon.events.all("inflate")) <= 256
