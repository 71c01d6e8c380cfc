"""Workers that are killed under virtual machines that report."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.doctor.diagnosis import diagnose
from host.doctor.facts import read_facts
from host.doctor.finding import Cause
from host.qmp.qmp_client import QmpClient
from protocol.memory import PAGE_SIZE
from protocol.units import MIB
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import VringState
from tests.harness.processes import DaemonProcess, ProgramProcess, forbid_more_descriptors, until
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, REPORTING, VirtualMachine

ROUNDS, CHAINS = 6, 16
KILLS = 20


class SupervisedDaemon(DaemonProcess):
    """A daemon whose workers can be killed."""

    def kill_worker_of(self, vm: int) -> None:
        """Kill the worker that serves a machine, and wait until another one has taken it over."""
        until(lambda: any(f"(vm {vm})" in title for title in self.workers().values()), f"a worker for vm {vm}")
        (pid,) = [pid for pid, title in self.workers().items() if f"(vm {vm})" in title]
        os.kill(pid, signal.SIGKILL)
        self.events.wait("taken_over", vm=vm)


@contextlib.contextmanager
def supervised(directory: Path, *options: str) -> Iterator[SupervisedDaemon]:
    """A daemon, one of whose workers at least is killed in the block."""
    with SupervisedDaemon(directory, *options) as daemon:
        yield daemon
        assert all("has ended" in line for line in daemon.stderr().splitlines())
        daemon.forget_stderr()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_chains_come_back_once_and_in_order_whenever_a_worker_is_killed(tmp_path: Path, packed: bool) -> None:
    options = ("--workers", "1", *(("--features", "packed=on") if packed else ()))
    with (
        supervised(tmp_path, *options) as daemon,
        VirtualMachine(daemon.socket_path, packed=packed) as machine,
    ):
        pages = list(range(DATA_AT, DATA_AT + ROUNDS * CHAINS * 2 * PAGE_SIZE, 2 * PAGE_SIZE))
        machine.ram.touch(DATA_AT, ROUNDS * CHAINS * 2 * PAGE_SIZE)
        before = machine.ram.pages()
        for start in range(0, len(pages), CHAINS):
            places = [GUEST_BASE + page for page in pages[start : start + CHAINS]]
            added = [machine.reporting.driver.add((), [(place, PAGE_SIZE)]) for place in places]
            machine.reporting.kick()
            daemon.kill_worker_of(1)
            assert machine.reporting.collect(CHAINS) == added
        assert machine.reporting.driver.get_used() is None
        assert machine.ram.pages() == before - set(pages)
        assert not machine.ram.spoilt_pages()


def test_message_in_pieces_is_carried_out_once_by_the_next_worker(tmp_path: Path) -> None:
    with supervised(tmp_path, "--workers", "1") as daemon, VirtualMachine(daemon.socket_path) as machine:
        daemon.events.wait("connected")
        message = build_message(FrontendRequest.GET_VRING_BASE, VringState(REPORTING, 0))
        machine.check_alive()
        for cut in (1, 12, len(message) - 1):
            machine.client.send(message[:cut])
            daemon.kill_worker_of(1)
            machine.client.send(message[cut:])
            assert machine.client.reply().payload == VringState(REPORTING, machine.reporting.ring.used[1])
        machine.start(machine.reporting)


def test_guest_that_reports_loses_nothing_while_its_workers_are_killed(tmp_path: Path) -> None:
    busy = ("--memory", "64M", "--high-water-mark", "4", "--reporting-delay", "0.02")
    workload = "memhog:size=32M,hold=0.1,rest=0.1,repeat=100000"
    with supervised(tmp_path, "--workers", "vm") as daemon:
        options = ("--socket-path", str(daemon.socket_path), *busy, "--workload", workload)
        with ProgramProcess("guest", *options) as guest:
            guest.events.wait("report")
            for _ in range(KILLS):
                daemon.kill_worker_of(1)
            guest.events.wait("report")
            guest.signal(signal.SIGTERM)
            finished = guest.events.wait("finished")
            assert finished["verified_pages"] > 0
            assert finished["corrupted_pages"] == 0
            assert guest.wait() == 0  # a second signal while it ends would kill it


def test_zygote_that_is_killed_is_started_again_when_it_is_needed(tmp_path: Path) -> None:
    with supervised(tmp_path, "--workers", "1") as daemon, VirtualMachine(daemon.socket_path) as machine:
        machine.check_alive()
        (zygote,) = [pid for pid, title in daemon.children().items() if "zygote" in title]
        os.kill(zygote, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{zygote}/fd").exists() or not os.listdir(f"/proc/{zygote}/fd"), "it has ended")
        for _ in range(2):
            daemon.kill_worker_of(1)
            machine.check_alive()


def test_machine_for_which_a_worker_has_no_descriptors_left_is_served_by_another(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, "--workers", "1") as daemon, VirtualMachine(daemon.socket_path) as machine:
        machine.check_alive()
        forbid_more_descriptors(daemon.serving_pid)
        with VirtualMachine(daemon.socket_path) as other:
            other.check_alive()
            assert len(daemon.workers()) == 2
        machine.check_alive()
        daemon.settled(2)
        until(lambda: len(daemon.workers()) == 1, "the other one has ended with its machine")
        assert "vm 2: no descriptors are left in worker 1 for it, another worker serves it\n" in daemon.stderr()
        daemon.forget_stderr()


def test_commands_are_answered_whatever_process_serves_the_machine(tmp_path: Path) -> None:
    control = tmp_path / "control"
    with (
        supervised(tmp_path, "--workers", "2", "--control", str(control)) as daemon,
        VirtualMachine(daemon.socket_path),
        VirtualMachine(daemon.socket_path),
        QmpClient(control) as client,
    ):
        daemon.events.wait_for_count("memory", 2)
        assert [vm["vm"] for vm in client.command("query-vms")] == [1, 2]
        client.command("balloon", vm=2, value=10 * MIB, **{"guest-memory": 14 * MIB})
        daemon.kill_worker_of(2)
        first, second = client.command("query-vms")
        assert (first["balloon-target"], second["balloon-target"]) == (0, 4 * MIB)
        assert (first["guest-memory"], second["guest-memory"]) == (16 * MIB, 14 * MIB)
        assert client.command("query-balloon", vm=1) == {"actual": 16 * MIB}
        client.command("disconnect", vm=1)
        daemon.settled(1)


def test_what_was_asked_of_a_machine_and_counted_outlives_its_worker(tmp_path: Path) -> None:
    control = tmp_path / "control"
    with (
        supervised(tmp_path, "--workers", "1", "--control", str(control)) as daemon,
        VirtualMachine(daemon.socket_path) as machine,
        QmpClient(control) as client,
    ):
        machine.check_alive()
        machine.ram.touch(DATA_AT, 4 * PAGE_SIZE)
        before = machine.ram.pages()
        client.command("query-vms")
        machine.report((DATA_AT, 2 * PAGE_SIZE))
        client.command("query-vms")
        machine.ram.touch(DATA_AT, 2 * PAGE_SIZE)
        client.command("set-log-level", level="error")
        message = build_message(FrontendRequest.GET_VRING_BASE, VringState(0, 0))
        machine.client.send(message[:5])  # it is in hand all the time
        client.command("inhibit", vm=1, why="a snapshot is restored")
        (earlier,) = client.command("query-vms")
        assert earlier["refaulted-bytes"] == 2 * PAGE_SIZE
        daemon.kill_worker_of(1)
        machine.client.send(message[5:])
        assert machine.client.reply().payload == VringState(0, 0)
        (later,) = client.command("query-vms")
        assert later["inhibited"] == {"by": "operator", "why": "a snapshot is restored"}
        for name in ("reports", "acknowledge", "discard", "refused-bytes", "refaulted-bytes"):
            assert later[name] == earlier[name]
        assert later["age"] >= earlier["age"]
        machine.report((DATA_AT, PAGE_SIZE))
        assert machine.ram.pages() == before
        assert client.command("query-status")["worker-restarts"] == 1
        assert client.command("query-status")["log-level"] == "error"


@pytest.fixture
def userfaultfd() -> Iterator[None]:
    fd = ctypes.CDLL(None).syscall(323, os.O_CLOEXEC | 1)  # userfaultfd(UFFD_USER_MODE_ONLY) on x86_64
    if os.uname().machine != "x86_64" or fd < 0:
        pytest.skip("no userfaultfd can be had")
    yield
    os.close(fd)


@pytest.mark.usefixtures("userfaultfd")
def test_confined_worker_is_told_what_it_may_not_see_of_a_front_end(tmp_path: Path) -> None:
    control = tmp_path / "control"
    with (
        supervised(tmp_path, "--workers", "1", "--control", str(control)) as daemon,
        VirtualMachine(daemon.socket_path) as machine,
        QmpClient(control) as client,
    ):

        def is_inhibited() -> bool:
            (entry,) = client.command("query-vms")
            return entry["inhibited"] is not None and "userfaultfd" in entry["inhibited"]["why"]

        until(is_inhibited, "the userfaultfd of this process is seen")
        daemon.kill_worker_of(1)
        assert is_inhibited()
        machine.ram.touch(DATA_AT, PAGE_SIZE)
        machine.report((DATA_AT, PAGE_SIZE))
        assert DATA_AT in machine.ram.pages()
        assert client.command("query-vms")[0]["descriptors-seen"]


def test_stuck_worker_holds_up_no_command(tmp_path: Path) -> None:
    control = tmp_path / "control"
    with (
        supervised(tmp_path, "--workers", "vm", "--control", str(control)) as daemon,
        VirtualMachine(daemon.socket_path),
        VirtualMachine(daemon.socket_path),
        QmpClient(control) as client,
    ):
        daemon.events.wait_for_count("memory", 2)
        assert not any("broken" in entry for entry in client.command("query-vms"))
        (pid,) = [pid for pid, title in daemon.workers().items() if "(vm 2)" in title]
        os.kill(pid, signal.SIGSTOP)
        client.command("set-log-level", level="error")
        first, second = client.command("query-vms")
        assert "broken" not in first
        assert second == second | {"vm": 2, "broken": "its worker does not answer", "guest-memory": 16 * MIB}
        assert (first["health"], second["health"]) == ([], ["not-served"])
        assert [finding.cause for finding in diagnose(read_facts(second))] == [Cause.NOT_SERVED]
        assert client.command("query-balloon", vm=1) == {"actual": 16 * MIB}
        os.kill(pid, signal.SIGKILL)
        daemon.events.wait("taken_over", vm=2)
