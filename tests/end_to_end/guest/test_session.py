"""What happens in the life of a session between the emulated guest and a real daemon, and what it does to memory."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from guest.control import ask
from host.qmp.ask import ask as ask_daemon
from protocol.errors import BalloonError
from tests.harness.processes import DaemonProcess, ProgramProcess, doomed_daemon, until
from tests.harness.signals import stray_signals

MIB: Final = 1 << 20
MACHINE: Final = (
    *("--memory", "64M", "--reporter", "boundary", "--high-water-mark", "4", "--reporting-capacity", "4"),
    *("--reporting-order", "5", "--hold"),
)
CHURN: Final = ("--workload", "churn:size=24M,seconds=3600,lifetime=0.1", "--seed", "5")
"""A workload that never rests: all events of the session happen under load."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(
        tmp_path_factory.mktemp("daemon"), "--features", "packed=on,in-order=on", "--in-band", "on"
    ) as daemon:
        yield daemon


def wait_for_memory_events(guest: ProgramProcess) -> None:
    """Let the guest work for as long as it takes to tell of its memory twice."""
    guest.events.wait_for_count("memory", len(guest.events.all("memory")) + 2)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_queues_stopped_under_load_go_on_where_they_were(ring: str, daemon: DaemonProcess, tmp_path: Path) -> None:
    control = tmp_path / "control"
    options = ("--socket-path", str(daemon.socket_path), *MACHINE, *CHURN, "--ring", ring, "--queue-size", "16")
    with ProgramProcess("guest", *options, "--control", str(control)) as guest:
        vm = daemon.events.wait_for_count("connected", 1, pid=guest.pid)[0]["vm"]
        for _ in range(2):
            seen = len(guest.events.all("report"))
            guest.events.wait_for_count("report", seen + 5)
            bases = dict(line.split() for line in ask(control, "stop").splitlines())
            assert list(bases) == ["inflate", "deflate", *(["stats"] if "stats" in bases else []), "reporting"]
            with pytest.raises(BalloonError, match=r"the queues are stopped already$"):
                ask(control, "stop")
            wait_for_memory_events(guest)  # what came before the stop has been told by now
            taken = len(daemon.events.all("report", vm=vm))
            wait_for_memory_events(guest)
            assert len(daemon.events.all("report", vm=vm)) == taken
            assert ask(control, "cont") == "started\n"
            with pytest.raises(BalloonError, match=r"the queues are not stopped$"):
                ask(control, "cont")
        seen = len(guest.events.all("report"))
        guest.events.wait_for_count("report", seen + 5)
        assert guest.stop() == 0
        assert guest.events.wait("finished")["corrupted_pages"] == 0
        summary = daemon.settled(vm)
        assert daemon.events.all("queue_stopped", vm=vm) == []
        # Each report was carried out once: what the guest was told of is what the daemon did, but for one at the end.
        told, done = guest.events.all("report"), daemon.events.all("report", vm=vm)
        assert 0 <= len(done) - len(told) <= 1
        assert [event["bytes"] for event in done][: len(told)] == [event["bytes"] for event in told]
        assert summary["discarded_bytes"] > 0


def test_queues_without_a_back_end_cannot_be_stopped(tmp_path: Path) -> None:
    control = tmp_path / "control"
    daemon = DaemonProcess(tmp_path)
    guest = ProgramProcess("guest", "--socket-path", str(daemon.socket_path), *MACHINE, "--control", str(control))
    try:
        guest.events.wait("booted")
        assert daemon.stop() == 0
        guest.events.wait("detached")
        for command in ("stop", "cont"):
            with pytest.raises(BalloonError, match=r"there is no back-end at the moment$"):
                ask(control, command)
        assert guest.stop() == 0
        until(lambda: not control.exists(), "the control socket is gone")
    finally:
        guest.kill()
        daemon.kill()


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_device_reset_under_load_begins_anew(ring: str, daemon: DaemonProcess, tmp_path: Path) -> None:
    control = tmp_path / "control"
    options = ("--socket-path", str(daemon.socket_path), *MACHINE, *CHURN, "--ring", ring, "--queue-size", "16")
    with ProgramProcess("guest", *options, "--control", str(control)) as guest:
        vm = daemon.events.wait_for_count("connected", 1, pid=guest.pid)[0]["vm"]
        for number in range(1, 4):
            seen = len(guest.events.all("report"))
            guest.events.wait_for_count("report", seen + 5)
            assert ask(control, "reset") == "reset\n"
            guest.events.wait_for_count("attached", number + 1)
            daemon.events.wait_for_count("reset", number, vm=vm)
        seen = len(guest.events.all("report"))
        guest.events.wait_for_count("report", seen + 5)
        assert guest.stop() == 0
        assert guest.events.wait("finished")["corrupted_pages"] == 0
        reasons = [event["reason"] for event in guest.events.all("detached")]
        assert reasons == ["the driver reset the device"] * 3 + ["machine powered off"]
        assert daemon.settled(vm)["discarded_bytes"] > 0
        assert daemon.events.all("queue_stopped", vm=vm) == []
        assert len(daemon.events.all("connected", pid=guest.pid)) == 1  # all that in one session


@pytest.mark.parametrize("notify", ["eventfd", "in-band"])
def test_target_set_while_the_queues_are_stopped_is_met_afterwards(notify: str, tmp_path: Path) -> None:
    device, control = tmp_path / "device", tmp_path / "control"
    with DaemonProcess(tmp_path, "--control", str(device), "--in-band", "on") as daemon:
        options = ("--socket-path", str(daemon.socket_path), *MACHINE, "--hold", "--notify", notify)
        with ProgramProcess("guest", *options, "--control", str(control)) as guest:
            guest.events.wait("booted")
            ask(control, "stop")
            ask_daemon(device, "balloon", {"value": 56 * MIB})
            ask(control, "cont")
            daemon.events.wait("balloon", actual_bytes=8 * MIB)
            assert guest.stop() == 0


# -- in-band notifications --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_kicks_and_interrupts_travel_as_messages(ring: str, daemon: DaemonProcess, tmp_path: Path) -> None:
    control = tmp_path / "control"
    options = ("--socket-path", str(daemon.socket_path), *MACHINE, *CHURN, "--ring", ring, "--notify", "in-band")
    with ProgramProcess("guest", *options, "--control", str(control)) as guest:
        guest.events.wait_for_count("report", 10)
        assert ask(control, "stop") != ""
        assert ask(control, "cont") == "started\n"
        seen = len(guest.events.all("report"))
        guest.events.wait_for_count("report", seen + 10)
        assert guest.stop() == 0
        assert guest.events.wait("finished")["corrupted_pages"] == 0
        vm = daemon.events.wait_for_count("connected", 1, pid=guest.pid)[0]["vm"]
        assert daemon.settled(vm)["discarded_bytes"] > 0


# -- the next daemon --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("notify", ["eventfd", "in-band"])
def test_next_daemon_resumes_what_the_last_one_left(ring: str, notify: str, tmp_path: Path) -> None:
    """Under load, with a balloon: no request fails, no page is lost, and the balloon's size is known to the new one."""
    device = ("--balloon", "8M", "--features", "packed=on,in-order=on", "--in-band", "on")
    with doomed_daemon(tmp_path, *device) as first:
        options = ("--ring", ring, "--notify", notify, "--reconnect", "resume")
        guest = ProgramProcess("guest", "--socket-path", str(first.socket_path), *MACHINE, *CHURN, *options)
        try:
            guest.events.wait_for_count("inflate", 1)
            guest.events.wait_for_count("report", 10)
            first.events.wait("balloon", actual_bytes=8 * MIB)
        except BaseException:
            guest.kill()
            raise
    try:
        for number in (1, 2):
            with doomed_daemon(tmp_path, *device) as following:
                guest.events.wait_for_count("resumed", number)
                following.events.wait("balloon", actual_bytes=8 * MIB)
                seen = len(guest.events.all("report"))
                guest.events.wait_for_count("report", seen + 10)
            guest.events.wait_for_count("interrupted", number + 1)
        assert guest.stop() == 0
        assert guest.events.wait("finished")["corrupted_pages"] == 0
        assert [event["reason"] for event in guest.events.all("detached")] == ["machine powered off"]
        assert len(guest.events.all("attached")) == 1
        said = guest.stderr()
        assert said.count("\n") == 5, said
    finally:
        guest.kill()


def test_stray_signals_do_not_end_the_guest_and_a_closed_terminal_ends_it_in_order(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    control = tmp_path / "control"
    with ProgramProcess(
        "guest", "--socket-path", str(daemon.socket_path), "--memory", "64M", "--control", str(control), "--hold"
    ) as guest:
        guest.events.wait("booted")
        for number in stray_signals(but={signal.SIGUSR1, signal.SIGHUP}):
            guest.signal(number)
        assert "Node 0" in ask(control, "buddyinfo")
        guest.signal(signal.SIGHUP)
        assert guest.wait() == 0
    assert not control.exists()
    assert not control.with_name("control.lock").exists()
