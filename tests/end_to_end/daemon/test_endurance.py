"""The daemon's endurance: peers that die, stall, storm and come in crowds, and its own end."""

import contextlib
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from host.events.event_limit import EVENTS_PER_SECOND
from host.events.session_events import SESSIONS_BURST, SESSIONS_PER_SECOND
from host.peers.fd_limit import FD_TABLE
from protocol.errors import VhostUserError
from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import VringFile
from protocol.virtio import FeatureBit, feature_mask
from tests.end_to_end.conftest import Scene
from tests.harness.processes import (
    DEADLINE,
    ROOT,
    WORKERS,
    DaemonProcess,
    forbid_more_descriptors,
    mappings_of_files,
    open_fds,
    resident_bytes,
    until,
)
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, MIB, WANTED, Client, Ram, VirtualMachine

CYCLES = 1000
CROWD = 200


def test_front_ends_killed_at_every_point_of_a_session(scene: Scene) -> None:
    first = scene.client().number + 1
    clients = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.dying_client", str(scene.daemon.socket_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    while clients.poll() is None:  # the neighbour is served all the while
        scene.neighbour.check_alive()
    output, _ = clients.communicate(timeout=DEADLINE)
    count = int(output)
    assert count > 60
    reasons = {scene.daemon.settled(number)["reason"] for number in range(first, first + count)}
    assert reasons <= {
        "front-end gone",
        "front-end gone in the middle of a message",
        "front-end gone: Connection reset by peer",  # it left a reply unread
        "front-end gone: Broken pipe",
    }


@pytest.mark.skipif(WORKERS == "vm", reason="a worker ends with its machine")
def test_thousand_sessions_leave_no_resources(tmp_path: Path) -> None:
    """Every descriptor number that was received is closed, no mapping stays, memory does not grow."""
    ram = Ram()
    with DaemonProcess(tmp_path) as daemon:
        for number in range(1, 51):  # threads and allocator pools are made
            run_session(daemon, ram, number)
        pid = daemon.serving_pid
        fds, mappings, resident = open_fds(pid), mappings_of_files(pid), resident_bytes(pid)
        seen: set[int] = set()
        for number in range(51, 51 + CYCLES):
            seen |= run_session(daemon, ram, number)
        assert open_fds(pid) == fds
        assert len(seen - fds.keys()) >= 10  # the sessions' own, each of them closed again
        assert mappings_of_files(pid) == mappings
        assert resident_bytes(pid) - resident < 4 * MIB
    ram.close()


def run_session(daemon: DaemonProcess, ram: Ram, number: int) -> set[int]:
    """Connect, negotiate, report, hang up, wait for the daemon to be done; return the descriptors it had meanwhile."""
    machine = VirtualMachine(daemon.socket_path, ram=ram)
    machine.ram.touch(DATA_AT, PAGE_SIZE)
    machine.report((DATA_AT, PAGE_SIZE))
    seen = set(open_fds(daemon.serving_pid)) if number % 100 == 0 else set()
    machine.client.close()
    for queue in machine.queues:
        queue.close()
    event = daemon.events.wait("disconnected", vm=number)
    assert (event["reports"], event["discarded_bytes"]) == (1, PAGE_SIZE)
    return seen


def test_descriptor_table_need_not_grow_while_machines_are_served(scene: Scene) -> None:
    """With threads each doubling of the table waits for an RCU grace period, on the event loop."""
    status = Path(f"/proc/{scene.daemon.serving_pid}/status").read_text(encoding="ascii").splitlines()
    (slots,) = (int(line.split()[1]) for line in status if line.startswith("FDSize:"))
    limit, _ = resource.prlimit(scene.daemon.serving_pid, resource.RLIMIT_NOFILE)
    assert slots >= min(limit, FD_TABLE)


def test_crowd_connects_reports_and_leaves(scene: Scene) -> None:
    machines = [scene.machine(ram=Ram()) for _ in range(CROWD)]
    assert resident_bytes(scene.daemon.serving_pid) < 80 * MIB
    for machine in machines:
        machine.ram.touch(DATA_AT, 4 * PAGE_SIZE)
    for machine in machines:
        machine.submit([(DATA_AT, PAGE_SIZE), (DATA_AT + 2 * PAGE_SIZE, PAGE_SIZE)])
    scene.neighbour.check_alive()
    for machine in machines:
        machine.reporting.collect()
        assert machine.ram.pages() == {DATA_AT + PAGE_SIZE, DATA_AT + 3 * PAGE_SIZE}


def test_connections_that_send_half_a_message_do_not_delay_others(scene: Scene) -> None:
    data = build_message(FrontendRequest.SET_FEATURES, 0)
    clients = [scene.client() for _ in range(60)]
    fd = os.eventfd(0)
    for length, client in enumerate(clients):
        if cut := data[: length % len(data)]:
            client.send(cut, [fd])
    os.close(fd)
    began = time.monotonic()
    for _ in range(20):
        scene.neighbour.check_alive()
    assert time.monotonic() - began < 5


def test_front_end_that_reads_no_reply_does_not_delay_others(scene: Scene) -> None:
    client = scene.client()
    client.socket.setblocking(False)
    data = build_message(FrontendRequest.GET_FEATURES) * 64
    with contextlib.suppress(BlockingIOError):  # until both directions are full
        while client.socket.send(data):
            pass
    for _ in range(20):
        scene.neighbour.check_alive()


def test_storm_of_bad_messages_does_not_delay_others(scene: Scene) -> None:
    client = scene.client()
    count = 2000
    client.send(build_message(FrontendRequest.SET_PROTOCOL_FEATURES, 1 << 63) * count)
    for _ in range(20):
        scene.neighbour.check_alive()
    assert client.ask(FrontendRequest.GET_QUEUE_NUM) == 5
    client.close()
    daemon = scene.daemon
    daemon.settled(client.number)
    refused = [event for event in daemon.events.all("message_refused") if event["vm"] == client.number]
    suppressed = [event for event in daemon.events.all("suppressed") if event["vm"] == client.number]
    assert {event["of"] for event in suppressed} == {"message_refused"}
    assert len(refused) + sum(event["count"] for event in suppressed) == count
    seconds = refused[-1]["t"] - refused[0]["t"]
    assert len(refused) <= EVENTS_PER_SECOND * (seconds + 2)
    scene.expect(client, *[("message_refused", "SET_PROTOCOL_FEATURES")] * len(refused))


def test_storm_of_kicks_does_not_delay_others(scene: Scene) -> None:
    machine = scene.machine()
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            for queue in machine.queues:
                queue.kick()

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        seconds = [time_of(scene.neighbour.check_alive) for _ in range(50)]
    finally:
        stop.set()
        thread.join()
    assert statistics.median(seconds) < 0.1
    machine.check_alive()


def test_semaphore_that_stays_readable_does_not_delay_others(scene: Scene) -> None:
    """A kick descriptor that can never be drained is polled at intervals; the other queues are served."""
    machine = scene.machine(run=False)
    os.close(machine.reporting.kick_fd)
    machine.reporting.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
    os.eventfd_write(machine.reporting.kick_fd, 1 << 62)
    machine.set_memory()
    machine.start(machine.reporting)
    seconds = [time_of(scene.neighbour.check_alive) for _ in range(50)]
    assert statistics.median(seconds) < 0.1
    machine.check_alive()


def test_endless_reports_of_one_machine_hold_no_other_up(scene: Scene) -> None:
    """A ring that is refilled as fast as it is emptied, with the longest chains it takes, all of them refused."""
    machine = scene.machine(wanted=WANTED & ~feature_mask(FeatureBit.RING_EVENT_IDX))
    bad = [(DATA_AT + 1 + i, PAGE_SIZE) for i in range(256)]
    stop = threading.Event()

    def refill() -> None:
        while not stop.is_set():
            while machine.reporting.driver.outstanding < 14:
                machine.reporting.driver.add((), [(GUEST_BASE + at, length) for at, length in bad])
            machine.reporting.kick()
            while machine.reporting.driver.get_used() is not None:
                pass

    thread = threading.Thread(target=refill)
    thread.start()
    try:
        seconds = [time_of(scene.neighbour.check_alive) for _ in range(50)]
    finally:
        stop.set()
        thread.join()
    machine.reporting.collect(machine.reporting.driver.outstanding)
    assert statistics.median(seconds) < 0.1
    number = machine.client.number
    count = machine.reporting.ring.used[1]
    machine.check_alive()
    scene.daemon.events.wait_for_count("report", count + 1, vm=number)
    refused = scene.daemon.events.all("refused", vm=number)
    assert 0 < len(refused) <= count
    scene.expect(machine, *[("refused", "unaligned")] * len(refused))


def test_flood_of_tiny_chains_is_told_in_sums(tmp_path: Path) -> None:
    """Few events, whose sums equal those of the session."""
    chains = 16 * 400
    with DaemonProcess(tmp_path) as daemon:
        with VirtualMachine(daemon.socket_path) as machine:
            for _ in range(chains // 16):
                for _ in range(16):
                    machine.reporting.driver.add((), [(GUEST_BASE + DATA_AT, PAGE_SIZE)])
                machine.reporting.kick()
                machine.reporting.collect(16)
        summary = daemon.settled(1)
        reports = daemon.events.all("report", vm=1)
    assert summary["reports"] == sum(event.get("chains", 1) for event in reports) == chains
    assert summary["discarded_bytes"] == sum(event["discarded_bytes"] for event in reports) == chains * PAGE_SIZE


def time_of(action: object) -> float:
    """Return the seconds that a call takes."""
    assert callable(action)
    began = time.monotonic()
    action()
    return time.monotonic() - began


def test_daemon_without_descriptors_left_serves_whom_it_has(tmp_path: Path) -> None:
    """Who asks for more meanwhile is refused or waits, and everything works again when there are some."""
    with DaemonProcess(tmp_path, environment={"PYTHONWARNINGS": "error"}) as daemon:
        with VirtualMachine(daemon.socket_path) as machine:
            machine.check_alive()
            greedy = VirtualMachine(daemon.socket_path, run=False)
            limit = forbid_more_descriptors(serving := daemon.serving(2))
            with pytest.raises(VhostUserError):  # the kernel dropped the file of its memory
                greedy.set_memory()
            refused = daemon.events.wait("message_refused", vm=2)
            assert refused["reason"] == "file descriptors were lost on the way, the daemon has too many open"
            greedy.close()
            machine.check_alive()
            daemon.settled(2)
            with contextlib.suppress(ProcessLookupError):  # a worker of its own has ended with it
                resource.prlimit(serving, resource.RLIMIT_NOFILE, limit)
            forbid_more_descriptors(daemon.pid)
            waiting = Client(daemon.socket_path)
            machine.check_alive()
            until(lambda: "Too many open files" in daemon.stderr(), "the complaint")
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limit)
            assert waiting.ask(FrontendRequest.GET_QUEUE_NUM) == 5
            waiting.close()
        assert daemon.stop() == 0
        assert daemon.stderr() == "vhost-user-balloon: cannot accept a virtual machine: Too many open files\n"
        daemon.forget_stderr()


def test_file_that_takes_the_last_descriptor_costs_its_own_message(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon, VirtualMachine(daemon.socket_path) as machine:
        machine.check_alive()
        client = Client(daemon.socket_path)
        assert client.ask(FrontendRequest.GET_QUEUE_NUM) == 5
        with (tmp_path / "file").open("w+b") as file:
            limit = forbid_more_descriptors(serving := daemon.serving(2), 1)
            client.request(FrontendRequest.SET_VRING_KICK, VringFile(2, True), [file.fileno()])
            refused = daemon.events.wait("message_refused", vm=2)
            assert "descriptors would be held" in refused["reason"]
            assert client.ask(FrontendRequest.GET_QUEUE_NUM) == 5
            resource.prlimit(serving, resource.RLIMIT_NOFILE, limit)
            until(lambda: not leads_to(serving, "file"), "the file is closed")
        client.close()
        machine.check_alive()


def leads_to(pid: int, name: str) -> bool:
    """Return whether a process has a file of this name open."""
    return any(target.endswith("/" + name) for target in open_fds(pid).values())


# -- the daemon's own end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_daemon_leaves_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    with DaemonProcess(tmp_path) as daemon:
        daemon.signal(number)
        assert daemon.wait() == 0
    assert not daemon.socket_path.exists()


def test_daemon_with_guests_tells_each_of_them(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        machines = [VirtualMachine(daemon.socket_path) for _ in range(5)]
        halfway = Client(daemon.socket_path)
        halfway.send(build_message(FrontendRequest.SET_FEATURES, 0)[:7])
        for machine in machines:
            machine.check_alive()
        daemon.events.wait_for_count("connected", 6)
        assert daemon.stop() == 0
        assert [event["reason"] for event in daemon.events.all("disconnected")] == ["daemon stops"] * 6
        for client in (halfway, *(machine.client for machine in machines)):
            assert client.is_closed_by_peer()
        for machine in machines:
            machine.close()
        halfway.close()
    assert not daemon.socket_path.exists()


@pytest.mark.parametrize("vanished", [False, True], ids=["connected", "vanished"])
def test_daemon_that_stops_finishes_the_chain_in_hand(tmp_path: Path, vanished: bool) -> None:
    """At any moment of the signal: acknowledged pages are gone, all others are untouched."""
    chains, chain_bytes = 6, 64 * MIB
    with DaemonProcess(tmp_path) as daemon:
        machine = VirtualMachine(daemon.socket_path, ram=Ram(DATA_AT + chains * chain_bytes))
        ram = machine.ram
        for at in range(DATA_AT, ram.size, MIB):
            os.pwrite(ram.fd, b"x" * MIB, at)
        for chain in range(chains):
            start = DATA_AT + chain * chain_bytes
            machine.reporting.driver.add((), [(GUEST_BASE + start + i * MIB, MIB) for i in range(64)])
        machine.reporting.kick()
        until(lambda: os.lseek(ram.fd, DATA_AT, os.SEEK_DATA) != DATA_AT, "the first page is discarded")
        if vanished:
            machine.client.close()
        assert daemon.stop() == 0
        used = machine.reporting.ring.used[1]
        assert 1 <= used <= chains
        first_left = DATA_AT + used * chain_bytes
        assert ram.pages(end=first_left) == set()
        assert len(ram.pages(first_left)) == (chains - used) * chain_bytes // PAGE_SIZE
        event = daemon.events.all("disconnected")[0]
        assert (event["reports"], event["discarded_bytes"]) == (used, used * chain_bytes)
        assert len(daemon.events.all("report")) == used
        machine.close()
    assert not daemon.socket_path.exists()


def test_daemon_that_stops_while_crowds_come_and_go(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        stop = threading.Event()

        def come_and_go() -> None:
            while not stop.is_set():
                with socket.socket(socket.AF_UNIX) as sock:
                    try:
                        sock.connect(str(daemon.socket_path))
                        sock.sendall(build_message(FrontendRequest.SET_OWNER))
                    except OSError:
                        return

        threads = [threading.Thread(target=come_and_go) for _ in range(3)]
        for thread in threads:
            thread.start()
        daemon.events.wait_for_count("disconnected", 50)
        assert daemon.stop() == 0
        stop.set()
        for thread in threads:
            thread.join()
        if WORKERS == "0":  # a worker has a crowd at once, and is ended before all of its sessions if that takes long
            assert len(daemon.events.all("disconnected")) == len(daemon.events.all("connected"))


@pytest.mark.skipif(WORKERS not in {"0", "1"}, reason="each worker has a budget of events of its own")
def test_connections_in_a_loop_are_counted_and_a_machine_among_them_is_told_of(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        begin = time.monotonic()
        for _ in range(SESSIONS_BURST + 200):
            Client(daemon.socket_path).close()
        with VirtualMachine(daemon.socket_path) as machine:
            connected = daemon.events.wait("connected", vm=SESSIONS_BURST + 201)
            machine.check_alive()
            daemon.events.wait("report", vm=connected["vm"])
        assert daemon.stop() == 0
        told = len(daemon.events.all("connected"))
        silent = sum(event["count"] for event in daemon.events.all("suppressed", of="session"))
        assert told + silent == SESSIONS_BURST + 201
        # All but the burst, and what the budget has gained in the time that a busy machine took for it.
        assert silent >= 200 - SESSIONS_PER_SECOND * (time.monotonic() - begin)
        assert len(daemon.events.all("disconnected")) == told
