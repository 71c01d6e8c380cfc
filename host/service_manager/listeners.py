"""The sockets at which the daemon listens: made, or handed over by a service manager, which keeps them meanwhile."""

import contextlib
import hashlib
import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes

from host.service_manager.notification import is_fd_name
from host.service_manager.service_manager import UNMANAGED, HandedOver, ServiceManager
from protocol.errors import BalloonError
from protocol.process.listening_socket import BY_UMASK, ListeningSocket, SocketAccess

log = logging.getLogger(__name__)

_KEPT: Final = "listener."
"""How the names begin under which they are kept."""


def kept_name(path: Path) -> str:
    """Return the name under which the socket at ``path`` is kept."""
    data = os.fsencode(path.absolute())
    name = _KEPT + quote_from_bytes(data)
    return name if is_fd_name(name) else _KEPT + hashlib.sha256(data).hexdigest()  # it is too long


class Listeners:
    """Opens sockets, but not those that ``manager`` has ``handed_over``."""

    def __init__(self, manager: ServiceManager = UNMANAGED, handed_over: HandedOver | None = None) -> None:
        self._manager = manager
        self._handed_over = HandedOver() if handed_over is None else handed_over
        self._ours: dict[str, ListeningSocket] = {}
        self._kept: set[str] = set()
        self._keeps = False

    def listen_at(self, path: Path, option: str, access: SocketAccess) -> ListeningSocket:
        """Return what listens at ``path``, as ``option`` says. When it is closed, the manager keeps it no longer.

        Raises:
            BalloonError: a path that is taken or cannot be bound.
        """
        name = kept_name(path)
        found = self._handed_over.take_listener(str(path))
        if found is not None and not path.is_socket():
            log.warning("%s %s: the file of the socket has gone that was handed over, a new one is made", option, path)
            found[0].close()
            self._manager.remove(found[1])
            found = None
        if found is not None and not found[1].startswith(_KEPT):
            return ListeningSocket(path, option, access, found[0], keeps_file=True)
        listener = ListeningSocket(path, option, access, None if found is None else found[0])
        listener.on_close = partial(self._forget, name)
        self._ours[name] = listener
        if found is not None and found[1] == name:
            self._kept.add(name)
        if self._keeps:
            self._keep(name)
        return listener

    def keep(self) -> None:
        """Have the manager keep what was made here, and what will be."""
        self._keeps = True
        for name in self._ours:
            self._keep(name)

    def _keep(self, name: str) -> None:
        if name not in self._kept:
            self._kept.add(name)
            self._manager.store(name, self._ours[name].socket.fileno())

    def close_others(self) -> None:
        """Close the sockets that were kept and are not listened at any more, and remove their files."""
        names = {name for name in self._handed_over.names if name.startswith(_KEPT)}
        self._handed_over.close(names & self._ours.keys())
        for name in names - self._ours.keys():
            self._manager.remove(name)
            if (fd := self._handed_over.take(name)) is not None:
                _close_for_good(fd)

    def forget(self) -> None:
        """Have the manager keep them no longer."""
        for name in list(self._ours):
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._ours.pop(name, None)
        if name in self._kept:
            self._kept.discard(name)
            self._manager.remove(name)

    def let_go(self) -> None:
        """Have their files left when they are closed: the manager has them."""
        for listener in self._ours.values():
            listener.leave_file()


def _close_for_good(fd: int) -> None:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return
    with sock, contextlib.suppress(BalloonError):
        if sock.family != socket.AF_UNIX:
            return
        path = Path(os.fsdecode(sock.getsockname()))
        ListeningSocket(path, "LISTEN_FDS", BY_UMASK, sock).close()
        log.info("%s: sockets there are asked for no longer", path)
