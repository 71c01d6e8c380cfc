"""The balloon driver removed and inserted again under a living kernel, which sends the daemon few messages about it.

User Mode Linux takes a driver away by disabling its rings, and frees their memory. A device that still writes
there corrupts pages in use.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from host.qmp.qmp_client import CommandError, QmpClient
from protocol.units import MIB
from tests.harness.linux_guest import INSMOD, MODULE, RMMOD, LinuxGuest
from tests.harness.processes import DaemonProcess, mappings_of_files, stall, until
from tests.harness.virtual_machine import Client

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

ROUNDS = 10
FREED = 24 * MIB


@dataclass(frozen=True)
class RingPages:
    """The parts of a guest's memory file that the daemon has mapped, as (offset, length): its rings alone."""

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, daemon: DaemonProcess) -> "RingPages":
        """Read them from the daemon's memory map."""
        spans = set()
        for line in mappings_of_files(daemon.pid):
            addresses, access, offset, *_ = line.split()
            begin, _, end = addresses.partition("-")
            if "w" in access:  # not the caches of the C library
                spans.add((int(offset, 16), int(end, 16) - int(begin, 16)))
        return cls(tuple(sorted(spans)))

    def read(self, descriptor: int) -> list[bytes]:
        """Return the content of each."""
        return [os.pread(descriptor, length, offset) for offset, length in self.spans]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keep a process from running, so that any change in its memory comes from outside."""
    try:
        stall(pid)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def check_reporting(daemon: DaemonProcess, guest: LinuxGuest) -> None:
    """Free memory and see it reported."""
    guest.fill(FREED)
    before = sum(event["discarded_bytes"] for event in daemon.events.all("report"))
    guest.free()
    until(
        lambda: sum(event["discarded_bytes"] for event in daemon.events.all("report")) >= before + FREED // 2,
        "what was freed is reported",
    )


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_driver_comes_and_goes_ten_times(tmp_path: Path, ring: str) -> None:
    features = f"packed={'on' if ring == 'packed' else 'off'},free-page-hint=on"
    options = ("--control", str(tmp_path / "control"), "--features", features)
    with (
        DaemonProcess(tmp_path, *options) as daemon,
        QmpClient(tmp_path / "control") as control,
        LinuxGuest(daemon, tmp_path) as guest,
    ):
        guest.run(f"test -e {MODULE} && head -c 32M /dev/urandom >/tmp/seed")
        ram = os.open(f"/proc/self/fd/{guest.ram.descriptor}", os.O_RDONLY)
        for _ in range(ROUNDS):
            check_reporting(daemon, guest)
            assert control.command("query-guest-statistics")["statistics"]["memfree"] > 0
            rings = RingPages.of(daemon)
            assert rings.spans
            guest.run(RMMOD)
            assert RingPages.of(daemon).spans == ()
            # The freed pages get content, and keep it through the daemon's commands.
            guest.run("cat /tmp/seed /tmp/seed >/tmp/content && md5sum /tmp/content >/tmp/sum")
            with stopped(guest.kernel_pid):
                content = rings.read(ram)
                # A statistics buffer was held. Who asks for it, or for memory, must not have it given back now.
                for command in ("query-guest-statistics", "reclaim"):
                    with pytest.raises(CommandError, match="no driver that is ready"):
                        control.command(command)
                with closing(Client(daemon.socket_path)):
                    daemon.events.wait("connected", pid=os.getpid())
                daemon.events.wait("disconnected")
                assert rings.read(ram) == content
            guest.run("md5sum -c /tmp/sum && rm /tmp/content")
            guest.run(INSMOD)
        check_reporting(daemon, guest)
        os.close(ram)
        guest.power_off()
        assert daemon.events.all("queue_stopped") == daemon.events.all("message_refused") == []
