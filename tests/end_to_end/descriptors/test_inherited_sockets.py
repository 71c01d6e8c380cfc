"""``--fd``: a socket that the daemon inherits, listening or connected, alone and beside others."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from host.qmp.qmp_client import QmpClient
from tests.harness.processes import ProgramProcess
from tests.harness.virtual_machine import Client, VirtualMachine


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("abstract", [False, True])
def test_inherited_listening_socket(tmp_path: Path, resources: ExitStack, abstract: bool) -> None:
    listener = resources.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    address = f"\0vhost-user-balloon-test-{os.getpid()}" if abstract else str(tmp_path / "inherited")
    listener.bind(address)
    listener.listen()
    fd = str(listener.fileno())
    with ProgramProcess("host", "--fd", fd, pass_fds=[listener.fileno()]) as daemon:
        assert daemon.events.wait("listening")["socket_path"].lstrip("@") == address.lstrip("\0")
        for _ in range(2):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(address)
            with VirtualMachine(Client(sock)) as machine:
                machine.check_alive()
    assert abstract or Path(address).exists()  # its maker removes it


def test_inherited_connected_socket_is_one_session() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ProgramProcess("host", "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()]) as daemon:
        theirs.close()
        with VirtualMachine(Client(ours)) as machine:
            machine.check_alive()
            assert daemon.events.wait("connected")["vm"] == 1
        assert daemon.wait() == 0  # further connections are impossible
        assert daemon.events.wait("disconnected")["reports"] == 1


def test_inherited_sockets_with_further_ones(tmp_path: Path, resources: ExitStack) -> None:
    listener = resources.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    listener.bind(str(tmp_path / "inherited"))
    listener.listen()
    named, control = tmp_path / "web", tmp_path / "control"
    options = ("--vm", f"socket-path={named},name=web", "--control", str(control))
    fd = str(listener.fileno())
    with ProgramProcess("host", "--fd", fd, *options, pass_fds=[listener.fileno()]) as daemon:
        daemon.events.wait_for_count("listening", 2)
        with VirtualMachine(tmp_path / "inherited") as one, VirtualMachine(named) as two, QmpClient(control) as client:
            one.check_alive()
            two.check_alive()
            inherited, web = client.command("query-vms")
            assert (inherited["name"] != "web", web["name"]) == (True, "web")
            sockets = client.command("query-status")["sockets"]
            assert [(Path(each["path"]).name, each["name"]) for each in sockets] == [
                ("web", "web"),
                ("inherited", None),
            ]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ProgramProcess("host", "--fd", str(theirs.fileno()), *options, pass_fds=[theirs.fileno()]) as daemon:
        theirs.close()
        with VirtualMachine(Client(ours)) as machine:
            machine.check_alive()
        daemon.events.wait("disconnected", vm=1)
        with VirtualMachine(named) as machine:
            machine.check_alive()  # it does not end with the first one


def test_inherited_connected_socket_and_sigterm() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ProgramProcess("host", "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()]) as daemon:
        theirs.close()
        with VirtualMachine(Client(ours)) as machine:
            machine.check_alive()
            assert daemon.stop() == 0
            assert machine.client.is_closed_by_peer()
