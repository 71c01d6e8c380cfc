"""The daemon is killed and upgraded under machines that report: its descriptors are with a keeper."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.qmp.qmp_client import QmpClient
from protocol.memory import PAGE_SIZE
from protocol.units import MIB
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import VringState
from tests.harness.linux_guest import LinuxGuest
from tests.harness.processes import EventFollower, ProgramProcess, until, workers_of
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, REPORTING, Ram, VirtualMachine

CHAINS = 16
VM = """
[[vm]]
socket-path = "{path}"
name = "{name}"
"""
BUSY = ("--memory", "64M", "--high-water-mark", "4", "--reporting-delay", "0.02")
WORKLOAD = "memhog:size=32M,hold=0.1,rest=0.1,repeat=100000"


class KeptDaemon(ProgramProcess):
    """A keeper and its daemon, whose events go to a FIFO that each daemon opens."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.socket_path = directory / "balloon.sock"
        self.control_path = directory / "control"
        fifo = directory / "events"
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reading, True)
        self._writing = os.open(fifo, os.O_WRONLY)  # the stream does not end with one daemon
        self.told = EventFollower(os.fdopen(reading, "rb"))
        paths = ("--socket-path", str(self.socket_path), "--control", str(self.control_path))
        super().__init__("host", "--keeper", str(directory / "keeper"), "--events", str(fifo), *paths, *options)
        self.daemon: int = self.told.wait("listening")["pid"]

    def close(self) -> None:
        """Take the last events."""
        os.close(self._writing)
        self.told.close()

    def kill_worker(self) -> None:
        """Kill the one worker, and wait until another one has taken its machine over."""
        until(lambda: any("(vm 1)" in title for title in workers_of(self.daemon).values()), "it shows its machine")
        (worker,) = workers_of(self.daemon)
        os.kill(worker, signal.SIGKILL)
        self.told.wait("taken_over", vm=1)

    def go_on(self, number: signal.Signals, vms: int) -> None:
        """Have the daemon replaced by a signal to it (SIGKILL) or to its keeper; wait until all machines go on."""
        taken_over = len(self.told.all("taken_over"))
        os.kill(self.daemon if number == signal.SIGKILL else self.pid, number)
        self.daemon = self.told.wait("listening")["pid"]
        self.told.wait_for_count("taken_over", taken_over + vms)


@contextlib.contextmanager
def kept(directory: Path, *options: str) -> Iterator[KeptDaemon]:
    """A daemon with a keeper, which is killed in the block perhaps."""
    daemon = KeptDaemon(directory, *options)
    with daemon:
        yield daemon
        assert all("another one goes on" in line for line in daemon.stderr().splitlines())
        daemon.forget_stderr()
    daemon.close()
    assert not list(directory.glob("*.sock*"))
    assert not (directory / "keeper").exists()


def test_chains_and_messages_are_handled_once_whenever_the_daemon_is_replaced(tmp_path: Path) -> None:
    with kept(tmp_path, "--workers", "1") as daemon, VirtualMachine(daemon.socket_path, packed=False) as machine:
        pages = list(range(DATA_AT, DATA_AT + 3 * CHAINS * 2 * PAGE_SIZE, 2 * PAGE_SIZE))
        machine.ram.touch(DATA_AT, 3 * CHAINS * 2 * PAGE_SIZE)
        before = machine.ram.pages()
        with QmpClient(daemon.control_path) as client:
            client.command("balloon", vm=1, value=10 * MIB)
        for start, number in zip(range(0, len(pages), CHAINS), ("SIGKILL", "SIGUSR2", "SIGKILL"), strict=True):
            places = [GUEST_BASE + page for page in pages[start : start + CHAINS]]
            added = [machine.reporting.driver.add((), [(place, PAGE_SIZE)]) for place in places]
            machine.reporting.kick()
            daemon.go_on(signal.Signals[number], 1)
            assert machine.reporting.collect(CHAINS) == added
        assert machine.reporting.driver.get_used() is None
        assert machine.ram.pages() == before - set(pages)
        message = build_message(FrontendRequest.GET_VRING_BASE, VringState(REPORTING, 0))
        machine.client.send(message[:5])
        daemon.go_on(signal.SIGKILL, 1)
        machine.client.send(message[5:])
        assert machine.client.reply().payload == VringState(REPORTING, machine.reporting.ring.used[1])
        with QmpClient(daemon.control_path) as client:
            (vm,) = client.command("query-vms")
            assert (vm["vm"], vm["guest-target"]) == (1, 10 * MIB)
            with VirtualMachine(daemon.socket_path):
                daemon.told.wait("memory", vm=2)


def test_machine_of_a_file_keeps_its_device_name_and_worker_while_sockets_change(tmp_path: Path) -> None:
    first, second, file = tmp_path / "first.sock", tmp_path / "second.sock", tmp_path / "vms.toml"
    file.write_text(VM.format(path=first, name="one") + "features = { packed = true, event-idx = false }\n")
    options = ("--workers", "1", "--config", str(file))
    with kept(tmp_path, *options) as daemon, VirtualMachine(first, packed=True, ram=Ram(sealed=False)) as machine:
        machine.check_alive()
        daemon.told.wait("taken_over", vm=1)  # by a worker of its own: its memory can be cut short
        file.write_text(VM.format(path=second, name="two"))
        daemon.go_on(signal.SIGUSR2, 1)
        machine.check_alive()
        until(lambda: not first.exists(), "the socket is asked for no longer")
        with VirtualMachine(second) as other, QmpClient(daemon.control_path) as client:
            other.check_alive()
            entries = client.command("query-vms")
            assert [(entry["vm"], entry["name"]) for entry in entries] == [(1, "one"), (2, "two")]
            assert ["packed" in entry["offered"] for entry in entries] == [True, False]
            file.write_text(VM.format(path=first, name="new"))
            daemon.signal(signal.SIGHUP)
            daemon.told.wait("reloaded", added=[str(first)], removed=[str(second)])
        daemon.told.wait("disconnected", vm=2)
        daemon.go_on(signal.SIGKILL, 1)
        machine.check_alive()
        assert len(daemon.told.all("taken_over", vm=1)) == 3  # it did not move apart anew
        with VirtualMachine(first, packed=False) as third:
            third.check_alive()
            assert daemon.told.wait("connected")["name"] == "new"


def test_two_guests_that_report_notice_no_upgrade(tmp_path: Path) -> None:
    with kept(tmp_path, "--workers", "vm") as daemon, contextlib.ExitStack() as stack:
        options = ("--socket-path", str(daemon.socket_path), *BUSY, "--workload", WORKLOAD)
        guests = [stack.enter_context(ProgramProcess("guest", *options)) for _ in range(2)]
        for guest in guests:
            guest.events.wait("report")
        for number in (signal.SIGUSR2, signal.SIGKILL):
            daemon.go_on(number, 2)
        for guest in guests:
            guest.events.wait_for_count("report", len(guest.events.all("report")) + 2)
            guest.signal(signal.SIGTERM)
            finished = guest.events.wait("finished")
            assert finished["verified_pages"] > 0
            assert finished["corrupted_pages"] == 0
            assert guest.wait() == 0  # a second signal while it ends would kill it


@pytest.mark.real_kernel
@pytest.mark.usefixtures("kernel_release")
def test_linux_does_not_notice_that_worker_and_daemon_are_replaced(tmp_path: Path) -> None:
    with kept(tmp_path, "--workers", "vm") as daemon, LinuxGuest(daemon, tmp_path) as guest:
        guest.run("dd if=/dev/urandom of=/tmp/kept bs=1M count=16 2>/dev/null; md5sum /tmp/kept >/tmp/sum")
        for number in (None, signal.SIGUSR2, None, signal.SIGKILL):
            guest.fill(100 * MIB)
            guest.free()
            daemon.kill_worker() if number is None else daemon.go_on(number, 1)
        until(lambda: guest.ram.resident_bytes() < 100 * MIB, "what the guest has freed is back with the host")
        guest.run("md5sum -c /tmp/sum")
        assert daemon.told.all("report")
        guest.power_off()


def test_daemon_goes_on_without_its_keeper_and_says_so(tmp_path: Path) -> None:
    daemon = KeptDaemon(tmp_path, "--workers", "1")
    with VirtualMachine(daemon.socket_path) as machine:
        daemon.process.kill()
        daemon.process.wait()
        machine.check_alive()
        machine.ram.touch(DATA_AT, PAGE_SIZE)
        machine.report((DATA_AT, PAGE_SIZE))
        with VirtualMachine(daemon.socket_path) as second:
            second.check_alive()
        until(lambda: "no descriptor is kept from now on" in daemon.stderr(), "the daemon says that it is alone")
    daemon.told.wait_for_count("disconnected", 2)
    os.kill(daemon.daemon, signal.SIGTERM)
    until(lambda: not daemon.socket_path.exists(), "the daemon has ended")
    assert len(daemon.stderr().splitlines()) == 1
    daemon.events.close()
    daemon.close()
    daemon._stdout.close()
    daemon._stderr.close()
