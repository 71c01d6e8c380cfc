"""Sessions whose process has gone: one that hid its connection in the daemon's own sockets ends, one that another
process still has goes on."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringFile
from tests.end_to_end.conftest import Scene
from tests.harness.processes import DEADLINE, ROOT, ProgramProcess
from tests.harness.virtual_machine import REPORTING, Client, VirtualMachine

CONNECT = """
import socket, sys
test = socket.socket(fileno=int(sys.argv[1]))
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[2])
socket.send_fds(test, [b"x"], [connection.fileno()])
sys.stdin.read()
"""
"""Connects, passes the connection on, and lives until its standard input ends."""

MAKE_PAIR = """
import socket, sys
test = socket.socket(fileno=int(sys.argv[1]))
pair = socket.socketpair()
socket.send_fds(test, [b"x"], [end.fileno() for end in pair])
sys.stdin.read()
"""


@contextmanager
def launcher(code: str, *arguments: str) -> Iterator[tuple[int, list[socket.socket]]]:
    """Run ``code`` for the time of the block. Gives its process id and the sockets that it passes on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        command = [sys.executable, "-c", code, str(fd), *arguments]
        with subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.PIPE) as process:
            ours.settimeout(DEADLINE)
            _, fds, _, _ = socket.recv_fds(ours, 1, 2)
            yield process.pid, [socket.socket(fileno=fd) for fd in fds]


@pytest.mark.parametrize(
    ("request_name", "how"),
    [
        ("SET_VRING_CALL", "plain"),
        ("SET_VRING_ERR", "plain"),
        ("SET_VRING_KICK", "plain"),
        ("SET_VRING_CALL", "urgent"),
        ("SET_VRING_CALL", "nested"),
        ("SET_VRING_CALL", "crowd"),
    ],
)
def test_front_end_that_hides_its_connection_and_dies_has_a_session_that_ends(
    scene: Scene, request_name: str, how: str
) -> None:
    path = str(scene.daemon.socket_path)
    command = [sys.executable, "-m", "tests.harness.hiding_client", path, request_name, how]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == b"hidden\n"
        number = scene.daemon.events.wait("connected", pid=process.pid)["vm"]
        assert scene.daemon.events.all("disconnected", vm=number) == []
        process.kill()
        process.wait()
    assert scene.daemon.settled(number)["reason"] == "front-end gone"


def test_listening_socket_is_refused(scene: Scene) -> None:
    """Its backlog can hold a connection that holds descriptors."""
    machine = scene.machine()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        assert machine.ask(FrontendRequest.SET_VRING_CALL, VringFile(REPORTING, True), [listener.fileno()]) == 1
    scene.expect(machine, ("message_refused", "SET_VRING_CALL"))


def check_session_goes_on(machine: VirtualMachine) -> None:
    """Check that the daemon closes what waits in a call socket, and serves its rings."""
    reading, writing = os.pipe()
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [b"x"], [writing])
    os.close(writing)
    assert machine.ask(FrontendRequest.SET_VRING_CALL, VringFile(REPORTING, True), [theirs.fileno()]) == 0
    theirs.close()
    assert select.select([reading], [], [], DEADLINE)[0]  # the last writing end was closed, with the queue
    assert os.read(reading, 1) == b""
    call = machine.reporting.call_fd
    assert machine.ask(FrontendRequest.SET_VRING_CALL, VringFile(REPORTING, True), [call]) == 0
    machine.check_alive()
    ours.close()
    os.close(reading)


def test_session_of_a_process_that_only_connected_goes_on(scene: Scene) -> None:
    with launcher(CONNECT, str(scene.daemon.socket_path)) as (pid, (connection,)):
        number = scene.daemon.events.wait("connected", pid=pid)["vm"]
        machine = VirtualMachine(Client(connection))
        machine.check_alive()
    check_session_goes_on(machine)
    assert scene.daemon.events.all("disconnected", vm=number) == []
    machine.close()
    assert scene.daemon.settled(number)["reason"] == "front-end gone"


def serve(end: socket.socket) -> ProgramProcess:
    """Start a daemon with ``end``."""
    with end:
        return ProgramProcess("host", "--fd", str(end.fileno()), pass_fds=[end.fileno()])


@pytest.mark.parametrize("starts_early", [False, True])
def test_daemon_with_one_end_of_a_pair_outlives_its_maker(*, starts_early: bool) -> None:
    """``starts_early``: the process that made the pair still lives when the daemon begins."""
    with launcher(MAKE_PAIR) as (_, (ours, theirs)):
        early = serve(theirs) if starts_early else None
        if early is not None:
            early.events.wait("connected")
    with early or serve(theirs) as daemon:
        machine = VirtualMachine(Client(ours))
        check_session_goes_on(machine)
        assert daemon.events.all("disconnected") == []
        machine.close()
        daemon.events.wait("disconnected", reason="front-end gone")
