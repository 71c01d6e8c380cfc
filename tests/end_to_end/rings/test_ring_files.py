"""The descriptors of a ring: kick and call of every kind, missing, replaced, full, closed at the other end."""

import os
import socket
from pathlib import Path

import pytest

from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringFile, VringState
from protocol.virtio import FeatureBit, feature_mask
from tests.end_to_end.conftest import Scene
from tests.harness.processes import open_fds, until
from tests.harness.virtual_machine import DATA_AT, MIB, REPORTING, WANTED

BASE = FrontendRequest.SET_VRING_BASE
GET_BASE = FrontendRequest.GET_VRING_BASE
KICK = FrontendRequest.SET_VRING_KICK
CALL = FrontendRequest.SET_VRING_CALL
ENABLE = FrontendRequest.SET_VRING_ENABLE

NO_EVENT_IDX = WANTED & ~feature_mask(FeatureBit.RING_EVENT_IDX)


def test_ring_without_a_kick_descriptor_is_polled(scene: Scene) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    machine.ask_each(machine.reporting.messages() | {KICK: (VringFile(REPORTING, False), ())})
    for _ in range(3):
        machine.ram.touch(DATA_AT, PAGE_SIZE)
        machine.reporting.driver.add((), [(machine.region.guest_address + DATA_AT, PAGE_SIZE)])
        machine.reporting.collect()
        assert machine.ram.pages() == set()


def test_kick_that_came_before_its_ring_is_not_lost(scene: Scene) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    machine.ram.touch(DATA_AT, PAGE_SIZE)
    machine.submit([(DATA_AT, PAGE_SIZE)])
    machine.start(machine.reporting)
    machine.reporting.collect()
    assert DATA_AT not in machine.ram.pages()


def test_kick_descriptor_of_a_running_ring_is_replaced_without_loss(scene: Scene) -> None:
    machine = scene.machine()
    for _ in range(20):
        machine.ram.touch(DATA_AT, MIB)
        machine.submit([(DATA_AT, MIB)])
        before = len(open_fds(scene.daemon.pid))
        assert machine.ask(KICK, VringFile(REPORTING, True), [machine.reporting.kick_fd]) == 0
        assert len(open_fds(scene.daemon.pid)) == before
        machine.reporting.collect()
    machine.check_alive()


def test_kick_for_a_regular_file_is_refused(scene: Scene, tmp_path: Path) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    with (tmp_path / "file").open("w+b") as file:
        messages = machine.reporting.messages() | {KICK: (VringFile(REPORTING, True), (file.fileno(),))}
        payload, fds = messages.pop(KICK)
        assert machine.ask(KICK, payload, fds) == 1
        machine.ask_each(messages)
    scene.expect(machine, ("message_refused", "SET_VRING_KICK"))
    machine.ask_each({request: machine.reporting.messages()[request] for request in (KICK, ENABLE)})
    machine.check_alive()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_kick_may_be_a_stream_and_may_end(scene: Scene, kind: str) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        ours, theirs = socket.socketpair()
        reading, writing = theirs.detach(), ours.detach()
    machine.ask_each(machine.reporting.messages() | {KICK: (VringFile(REPORTING, True), (reading,))})
    os.close(reading)
    for byte in range(3):
        machine.ram.touch(DATA_AT, PAGE_SIZE)
        machine.submit([(DATA_AT, PAGE_SIZE)])  # its own kick goes to an eventfd that is not watched
        os.write(writing, bytes(8 * byte + 1))
        machine.reporting.collect()
    os.close(writing)
    machine.ask_each({KICK: machine.reporting.messages()[KICK]})
    machine.check_alive()


def test_ring_without_a_call_descriptor_is_served_silently(scene: Scene) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    machine.ask_each(machine.reporting.messages() | {CALL: (VringFile(REPORTING, False), ())})
    for count in range(1, 4):
        machine.ram.touch(DATA_AT, PAGE_SIZE)
        machine.submit([(DATA_AT, PAGE_SIZE)])
        machine.reporting.wait_for_used_index(count)
        assert machine.ram.pages() == set()


def test_new_call_descriptor_is_signalled_once(scene: Scene) -> None:
    """The old one may hold an interrupt that was not read before its reader went away."""
    machine = scene.machine()
    machine.check_alive()
    for _ in range(5):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        before = len(open_fds(scene.daemon.pid))
        assert machine.ask(CALL, VringFile(REPORTING, True), [fd]) == 0
        assert len(open_fds(scene.daemon.pid)) == before
        os.close(machine.reporting.call_fd)
        machine.reporting.call_fd = fd
        machine.reporting.wait_for_call()
        machine.check_alive()


def test_call_descriptor_is_replaced_while_reports_are_served(scene: Scene) -> None:
    """The descriptor's number is free for other files at once; a late signal must not reach those."""
    machine = scene.machine(wanted=NO_EVENT_IDX)
    for _ in range(50):
        machine.submit([(DATA_AT, PAGE_SIZE)])
        assert machine.ask(CALL, VringFile(REPORTING, False)) == 0
        machine.submit([(DATA_AT, PAGE_SIZE)])
        assert machine.ask(CALL, VringFile(REPORTING, True), [machine.reporting.call_fd]) == 0
    machine.reporting.collect(100)


@pytest.mark.parametrize("flags", [0, socket.SOCK_NONBLOCK])
def test_full_call_socket_does_not_stall_the_daemon(scene: Scene, flags: int) -> None:
    machine = scene.machine(wanted=NO_EVENT_IDX, run=False)
    machine.set_memory()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | flags)
    with ours, theirs:
        machine.ask_each(machine.reporting.messages() | {CALL: (VringFile(REPORTING, True), (theirs.fileno(),))})
        for _ in range(12):
            for _ in range(64):
                machine.submit([(DATA_AT, PAGE_SIZE)])
            for _ in range(64):
                until(lambda: machine.reporting.driver.get_used() is not None, "a used entry")
        ours.setblocking(False)
        waiting = b"".join(iter(lambda: receive(ours), b""))
    assert 0 < len(waiting) < 8 * 12 * 64
    assert waiting == (1).to_bytes(8, "little") * (len(waiting) // 8)
    scene.neighbour.check_alive()


def receive(sock: socket.socket) -> bytes:
    """Return the bytes that are ready, possibly empty."""
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_call_descriptor_whose_other_end_is_gone(scene: Scene, kind: str) -> None:
    machine = scene.machine(wanted=NO_EVENT_IDX, run=False)
    machine.set_memory()
    if kind == "socket":
        ours, theirs = (sock.detach() for sock in socket.socketpair())
    else:
        ours, theirs = os.pipe()
    machine.ask_each(machine.reporting.messages() | {CALL: (VringFile(REPORTING, True), (theirs,))})
    os.close(ours)
    os.close(theirs)
    for count in range(1, 20):
        machine.submit([(DATA_AT, PAGE_SIZE)])
        machine.reporting.wait_for_used_index(count)


def test_full_call_eventfd_does_not_stall_the_daemon(scene: Scene) -> None:
    machine = scene.machine(wanted=NO_EVENT_IDX, run=False)
    machine.set_memory()
    fd = os.eventfd((1 << 32) - 1)
    for _ in range(2):
        os.eventfd_write(fd, (1 << 63) - (1 << 31) - 1)  # the counter ends at 2**64 - 3: one more signal and it is full
    os.eventfd_write(fd, (1 << 64) - 2 - ((1 << 32) - 1) - 2 * ((1 << 63) - (1 << 31) - 1))
    machine.ask_each(machine.reporting.messages() | {CALL: (VringFile(REPORTING, True), (fd,))})
    for count in range(1, 5):
        machine.submit([(DATA_AT, PAGE_SIZE)])
        machine.reporting.wait_for_used_index(count)
    os.close(fd)


def test_call_for_a_terminal_is_refused_and_the_old_one_stays(scene: Scene) -> None:
    """A terminal whose output is stopped takes no byte until its owner continues it."""
    machine = scene.machine()
    before = len(open_fds(scene.daemon.pid))
    for fd in os.openpty():
        assert machine.ask(CALL, VringFile(REPORTING, True), [fd]) == 1
        os.close(fd)
    assert len(open_fds(scene.daemon.pid)) == before
    scene.expect(machine, *[("message_refused", "SET_VRING_CALL")] * 2)
    machine.check_alive()


def test_spurious_kicks_change_nothing(scene: Scene) -> None:
    machine = scene.machine()
    machine.check_alive()
    # The device may still be asking for the next kick when the driver sees the used entry; stopping waits for that.
    for enable in (0, 1):
        machine.ask(ENABLE, VringState(REPORTING, enable))
    begin, end = machine.reporting.offset + 0x6000, machine.reporting.offset + 0x6800
    used = bytes(machine.ram.map[begin:end])
    for _ in range(100):
        machine.reporting.kick()
    machine.ask(ENABLE, VringState(REPORTING, 0))
    assert machine.ram.map[begin:end] == used
    machine.ask(ENABLE, VringState(REPORTING, 1))
    machine.check_alive()
