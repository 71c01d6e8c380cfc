"""The process at the other end of a unix stream socket."""

import socket
from struct import Struct
from typing import Final, NamedTuple

_CREDENTIALS: Final = Struct("3i")  # struct ucred, unix(7)


class PeerProcess(NamedTuple):
    """The process that connected, or listened, as the kernel recorded it then."""

    pid: int
    """Its number, 0 if it is in another pid namespace. Still known when it has gone."""

    uid: int
    """Its user."""


def peer_process(sock: socket.socket) -> PeerProcess:
    """Return the process at the other end of a connected socket (SO_PEERCRED)."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return PeerProcess(pid, uid)
