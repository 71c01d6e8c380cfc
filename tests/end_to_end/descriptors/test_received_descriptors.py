"""Descriptors of every type that a front-end can pass: one of an unlisted type has its message refused, no more."""

import array
import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from protocol.vhost_user_payloads import MemoryTable, VringFile
from tests.end_to_end.conftest import Scene
from tests.harness.virtual_machine import DATA_AT, REPORTING

LINGER_SECONDS = 5


@pytest.fixture
def lingering() -> Iterator[int]:
    """A TCP socket that takes five seconds to close: its peer reads nothing, and it has something left to send."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_SECONDS))
        ours.setblocking(False)
        while select.select([], [ours], [], 0.1)[1]:
            ours.send(bytes(1 << 20))
        yield ours.detach()
        theirs.close()


@pytest.mark.parametrize("request_number", [FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL])
def test_socket_that_takes_long_to_close_holds_nothing_up(
    scene: Scene, lingering: int, request_number: FrontendRequest
) -> None:
    machine = scene.machine()
    begin = time.monotonic()
    client = machine.client
    client.send(build_message(request_number, VringFile(REPORTING, True), need_reply=True), [lingering])
    os.close(lingering)  # the daemon closes the last one
    scene.neighbour.check_alive()
    assert time.monotonic() - begin < LINGER_SECONDS / 2
    scene.expect(machine, ("message_refused", request_number.name))


def test_socket_in_an_unread_message_holds_nothing_up(scene: Scene, lingering: int) -> None:
    machine = scene.machine()
    begin = time.monotonic()
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [b"x"], [lingering])
    os.close(lingering)
    assert machine.ask(FrontendRequest.SET_VRING_CALL, VringFile(REPORTING, True), [theirs.fileno()]) == 0
    theirs.close()
    machine.client.close()
    scene.neighbour.check_alive()
    assert time.monotonic() - begin < LINGER_SECONDS / 2
    ours.close()


def test_refused_memory_table_leaves_the_old_one_in_force(scene: Scene) -> None:
    machine = scene.machine()
    procfs = os.open("/proc/self/status", os.O_RDONLY)
    assert machine.ask(FrontendRequest.SET_MEM_TABLE, MemoryTable((machine.region,)), [procfs]) == 1
    os.close(procfs)
    scene.expect(machine, ("message_refused", "SET_MEM_TABLE"))
    machine.check_alive()


def test_front_end_that_passes_its_own_socket_and_dies_has_a_session_that_ends(scene: Scene) -> None:
    machine = scene.machine()
    fd = machine.client.socket.fileno()
    for request in (FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL, FrontendRequest.SET_VRING_ERR):
        assert machine.ask(request, VringFile(REPORTING, True), [fd]) == 1
    machine.client.close()
    scene.end_of(machine)
    scene.expect(machine, *(("message_refused", f"SET_VRING_{name}") for name in ("KICK", "CALL", "ERR")))


def test_descriptors_on_a_kick_socket_are_closed(scene: Scene) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    ours, theirs = socket.socketpair()
    messages = machine.reporting.messages()
    machine.ask_each(messages | {FrontendRequest.SET_VRING_KICK: (VringFile(REPORTING, True), (theirs.fileno(),))})
    theirs.close()
    machine.ram.touch(DATA_AT, PAGE_SIZE)
    machine.submit([(DATA_AT, PAGE_SIZE)])
    fds = [os.eventfd(0) for _ in range(20)]
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    ours.sendmsg([bytes(8)], ancillary)
    machine.reporting.collect()
    for fd in fds:
        os.close(fd)
    ours.close()
