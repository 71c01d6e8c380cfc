"""The sockets at which the daemon listens: made, or handed over by a service manager, which keeps them meanwhile."""

import contextlib
import logging
import socket
from pathlib import Path
from typing import Final

from host.service_manager.service_manager import UNMANAGED, HandedOver, ServiceManager
from protocol.process.listening_socket import ListeningSocket, SocketAccess, inherited_socket

log = logging.getLogger(__name__)

_KEPT: Final = "listener."
"""How the names begin under which they are kept."""


class Listeners:
    """Opens sockets, but not those that ``manager`` has ``handed_over``."""

    def __init__(self, manager: ServiceManager = UNMANAGED, handed_over: HandedOver | None = None) -> None:
        self._manager = manager
        self._handed_over = HandedOver() if handed_over is None else handed_over
        self._ours: dict[str, ListeningSocket] = {}

    def open_socket(
        self, path: Path | None, fd: int | None, access: SocketAccess, sockets: contextlib.ExitStack
    ) -> tuple[socket.socket, bool]:
        """Return the inherited socket ``fd``, or what listens at ``path``, and whether it listens or is connected.

        ``sockets`` closes one that was opened here, and removes its file.

        Raises:
            BalloonError: no such descriptor, not a unix stream socket, a path that is taken or cannot be bound.
        """
        if fd is not None:
            return inherited_socket(fd)
        assert path is not None
        return self.listen_at(path, "--socket-path", access, sockets).socket, True

    def listen_at(
        self, path: Path, option: str, access: SocketAccess, sockets: contextlib.ExitStack
    ) -> ListeningSocket:
        """Return what listens at ``path``, as ``option`` says; ``sockets`` closes it. Raises :class:`BalloonError`."""
        name = _KEPT + option.lstrip("-")
        found = self._handed_over.take_listener(str(path))
        if found is not None and not path.is_socket():
            log.warning("%s %s: the file of the socket has gone that was handed over, a new one is made", option, path)
            found[0].close()
            self._manager.remove(found[1])
            found = None
        self._handed_over.close({name})  # that of another path
        if found is not None and not found[1].startswith(_KEPT):
            listener = ListeningSocket(path, option, access, found[0], keeps_file=True)
        else:
            listener = ListeningSocket(path, option, access, None if found is None else found[0])
            self._ours[name] = listener
        sockets.callback(listener.close)
        return listener

    def keep(self) -> None:
        """Have the manager keep what was made here."""
        for name, listener in self._ours.items():
            self._manager.remove(name)
            self._manager.store(name, listener.socket.fileno())

    def forget(self) -> None:
        """Have the manager keep them no longer."""
        for name in self._ours:
            self._manager.remove(name)

    def let_go(self) -> None:
        """Have their files left when they are closed: the manager has them."""
        for listener in self._ours.values():
            listener.leave_file()
