"""Fixtures for tests of the daemon: one process for a file of tests, and a neighbour that has to stay undisturbed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from guest.linux.kernel_files import locate
from protocol.errors import BalloonError
from tests.harness.processes import DaemonProcess, mappings_of_files, open_fds, until
from tests.harness.virtual_machine import Client, VirtualMachine

INCIDENTS = {"refused": "reason", "queue_stopped": "queue", "queue_unknown": "queue", "message_refused": "request"}
"""The events of complaint, and the field that tells what about."""


@dataclass
class Scene:
    """A running daemon, a well-behaved virtual machine on it, and the machines that a test adds."""

    daemon: DaemonProcess
    neighbour: VirtualMachine
    _guests: list[Client | VirtualMachine] = field(default_factory=list)
    _expected: dict[int, list[tuple[str, str]]] = field(default_factory=dict)

    def client(self) -> Client:
        """Connect a bare client."""
        client = Client(self.daemon.socket_path)
        client.number = self.daemon.events.wait("connected", pid=os.getpid())["vm"]
        self._guests.append(client)
        self._expected[client.number] = []
        return client

    def machine(self, **options: Any) -> VirtualMachine:
        """Connect a virtual machine."""
        machine = VirtualMachine(self.client(), **options)
        self._guests[-1] = machine
        return machine

    def expect(self, guest: Client | VirtualMachine, *incidents: tuple[str, str]) -> None:
        """Wait until the daemon has complained about ``guest`` in exactly this way, and hold it to that to the end.

        An incident is the event and its field in ``INCIDENTS``. Without this call none may happen.
        """
        number = guest.number if isinstance(guest, Client) else guest.client.number
        self._expected[number] = list(incidents)
        until(lambda: len(self._incidents(number)) >= len(incidents), f"{len(incidents)} incidents: {incidents[:3]}")
        assert self._incidents(number) == list(incidents)

    def _incidents(self, number: int) -> list[tuple[str, str]]:
        events = [event for event in self.daemon.events.all() if event["event"] in INCIDENTS]
        return [(event["event"], str(event[INCIDENTS[event["event"]]])) for event in events if event["vm"] == number]

    def end_of(self, guest: Client | VirtualMachine) -> dict[str, Any]:
        """Return the ``disconnected`` event of a guest that is gone or about to be."""
        return self.daemon.settled(guest.number if isinstance(guest, Client) else guest.client.number)

    def leave(self) -> None:
        """Let every guest but the neighbour go, and wait until the daemon is done with them."""
        for guest in self._guests:
            guest.close()
        for number, incidents in self._expected.items():
            self.daemon.settled(number)
            assert self._incidents(number) == incidents
        assert self._incidents(self.neighbour.client.number) == []


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, VirtualMachine]]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon"), "--in-band", "on") as daemon:
        with VirtualMachine(daemon.socket_path) as neighbour:
            neighbour.client.number = daemon.events.wait("connected")["vm"]
            neighbour.check_alive()
            yield daemon, neighbour
        assert daemon.settled(neighbour.client.number)["refused"] == {}


@pytest.fixture
def scene(shared_daemon: tuple[DaemonProcess, VirtualMachine]) -> Iterator[Scene]:
    """A scene that is checked when the test is over: the neighbour untouched, every descriptor and mapping given up."""
    daemon, neighbour = shared_daemon
    pid, accepting_pid = daemon.serving_pid, daemon.pid
    fds, mappings = open_fds(pid), mappings_of_files(pid)
    accepting_fds = open_fds(accepting_pid)
    scene = Scene(daemon, neighbour)
    yield scene
    neighbour.check_alive()
    scene.leave()
    until(lambda: open_fds(pid) == fds, "the same open file descriptors as before")
    until(lambda: open_fds(accepting_pid) == accepting_fds, "the same in the process that has accepted them")
    assert mappings_of_files(pid) == mappings
    neighbour.check_alive()
    assert daemon.stderr() == ""


@pytest.fixture(scope="session")
def kernel_release() -> str:
    """Have the real kernel in the cache, so that no test's deadline includes fetching it; return its release.

    Where it cannot be had, tests that need it are skipped, but not in continuous integration: there they fail.
    """
    try:
        return locate(kernel=None, modules=None, progress=lambda _line: None).release
    except BalloonError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
