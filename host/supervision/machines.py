"""What the daemon needs of whatever serves its virtual machines: the interface, without code of its own.

:class:`host.sessions.Sessions` serves them in the daemon's own process, :class:`host.supervisor.Supervisor` in worker
processes.
"""

import socket
from collections.abc import Mapping
from typing import Any, Protocol

from host.configuration.device_options import DeviceOptions
from host.qmp.qmp import Request


class Notices(Protocol):
    """Takes what control clients are to be told, see :class:`host.control.control_server.ControlServer`."""

    def emit(self, event: str, data: Mapping[str, Any]) -> None:
        """Send an event to every client."""

    def balloon_changed(self, vm: int, logical_bytes: int) -> None:
        """Take note of a new balloon size, which leaves the guest ``logical_bytes``."""

    def forget(self, vm: int) -> None:
        """Take note that a virtual machine has gone."""


class Unnoticed:
    """Notices without a control socket."""

    def emit(self, event: str, data: Mapping[str, Any]) -> None:
        """Drop the event."""

    def balloon_changed(self, vm: int, logical_bytes: int) -> None:
        """Drop the size."""

    def forget(self, vm: int) -> None:
        """Do nothing."""


class Machines(Protocol):
    """Serves the virtual machines of a daemon. ``notices`` is set before :meth:`start`."""

    notices: Notices

    @property
    def held_up(self) -> bool:
        """Whether a thread of this process is still held up by a front-end whose session has ended."""

    def start(self) -> None:
        """Begin, on the event loop."""

    def serve(self, vm: int, sock: socket.socket, *, device: DeviceOptions) -> object:
        """Serve the virtual machine at the other end of ``sock``, which changes its owner, with this ``device``."""

    async def perform(self, request: Request) -> bytes:
        """Carry out one command and return its answer."""

    async def query(self, name: str) -> Any:
        """Return what a ``query-`` command returns. The value is not to be changed, and may change.

        Raises:
            BalloonError: it cannot be carried out.
        """

    async def status(self) -> list[str]:
        """Return a line about each virtual machine, for people, by number."""

    async def all_gone(self) -> None:
        """Return when no virtual machine is served."""

    async def finish(self) -> None:
        """End every session, and serve no more."""

    @property
    def outlives(self) -> bool:
        """Whether the sessions can go on in another process, after :meth:`let_go`."""

    async def let_go(self) -> None:
        """Serve no more, in the middle of what is being done."""
