"""A front-end that hides its own end of the connection, and says so: ``python -m tests.harness.hiding_client SOCKET
REQUEST HOW``.

It gives the daemon one end of a socket pair by REQUEST. Through the other end it has sent its connection, which waits
in the daemon's socket from then on: ``plain``, ``urgent`` (MSG_OOB), ``nested`` (in a socket in that socket) or after a
``crowd`` of other messages. Prints a line, and waits to be killed.
"""

import array
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringFile
from tests.harness.virtual_machine import REPORTING, Client, VirtualMachine


def send(sock: socket.socket, fd: int, flags: int = 0) -> None:
    """Send one byte and one descriptor."""
    sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))], flags)


def hide(own: int, how: str) -> int:
    """Return a socket that has ``own`` in its receive queue. Its other end is kept open."""
    ours, theirs = socket.socketpair()
    if how == "nested":
        own = hide(own, "plain")
    if how == "crowd":
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                send(ours, own)
    send(ours, own, socket.MSG_OOB if how == "urgent" else 0)
    os.dup(ours.fileno())
    return theirs.detach()


def main(path: Path, request: FrontendRequest, how: str) -> None:
    """Hide the connection, say so, and wait."""
    machine = VirtualMachine(Client(path), run=False)
    queue = hide(machine.client.socket.fileno(), how)
    assert machine.ask(request, VringFile(REPORTING, True), [queue]) == 0
    print("hidden", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]), FrontendRequest[sys.argv[2]], sys.argv[3])
