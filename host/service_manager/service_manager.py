"""The daemon's side of its service manager: a socket for notifications, and the descriptors that it was handed over."""

import array
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from host.service_manager.notification import (
    LISTEN_FDS_START,
    build_notification,
    handed_over,
    remove,
    store,
    without_handing_over,
)
from protocol.errors import BalloonError

log = logging.getLogger(__name__)

PATIENCE: Final = 2
"""Seconds that the manager has to take a notification while its queue is full."""


class ServiceManager:
    """The manager at the other end of the notification socket ``address``, in the form of ``NOTIFY_SOCKET``; without an
    address there is none, and nothing is said.

    Datagrams that were sent outlive this process. When one cannot be sent, that is logged, and no more are.
    """

    def __init__(self, address: str | None) -> None:
        self._socket: socket.socket | None = None
        self.keeps = False
        """Whether descriptors that are stored can be expected to come back."""
        if address:
            self._connect(address)

    def _connect(self, address: str) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", PATIENCE, 0))
        try:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            sock.close()
            log.warning("the service manager at %s cannot be told anything: %s", address, error.strerror or error)
            return
        self._socket = sock
        self.keeps = True

    @property
    def is_there(self) -> bool:
        """Whether there is a manager that hears what is said."""
        return self._socket is not None

    def tell(self, fields: Mapping[str, str], fds: Iterable[int] = ()) -> bool:
        """Send a notification; return whether it was sent. The descriptors stay the caller's."""
        if self._socket is None:
            return False
        fds = array.array("i", fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        try:
            self._socket.sendmsg([build_notification(fields)], ancillary, socket.MSG_NOSIGNAL)
        except OSError as error:
            why = "it does not read" if isinstance(error, BlockingIOError) else error.strerror
            log.warning("the service manager cannot be told anything more (%s): no descriptor is kept from now on", why)
            self.close()
            return False
        return True

    def store(self, name: str, fd: int) -> bool:
        """Have it keep ``fd`` by this name; return whether it was told."""
        return self.keeps and self.tell(store(name), [fd])

    def remove(self, name: str) -> None:
        """Have it forget what it keeps by this name."""
        if self.keeps:
            self.tell(remove(name))

    def close(self) -> None:
        """Say no more. What it keeps it goes on to keep."""
        self.keeps = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None


UNMANAGED: Final = ServiceManager(None)


class HandedOver:
    """Descriptors that a service manager has handed over, which are owned here until they are taken, by name."""

    def __init__(self, descriptors: Iterable[tuple[str, int]] = ()) -> None:
        self._fds: dict[str, list[int]] = {}
        for name, fd in descriptors:
            self._fds.setdefault(name, []).append(fd)

    @property
    def names(self) -> list[str]:
        """The names that have not been taken."""
        return list(self._fds)

    def take(self, name: str) -> int | None:
        """Return the descriptor of this name, which is the caller's from now on, None if there is none. Of several the
        first counts; the others are closed, and the log says so."""
        fds = self._fds.pop(name, [])
        if len(fds) > 1:
            log.warning("%d descriptors named %s were handed over: the first of them counts", len(fds), name)
        for fd in fds[1:]:
            os.close(fd)
        return fds[0] if fds else None

    def take_listener(self, path: str) -> tuple[socket.socket, str] | None:
        """Return the unix socket that listens at ``path`` and its name, None if there is none."""
        for name, fds in self._fds.items():
            for fd in fds:
                if _listens_at(fd, path):
                    fds.remove(fd)
                    if not fds:
                        del self._fds[name]
                    return socket.socket(fileno=fd), name
        return None

    def close(self, names: Iterable[str] | None = None) -> None:
        """Close what has not been taken: all, or what has one of these names."""
        for name in list(self._fds) if names is None else names:
            for fd in self._fds.pop(name, []):
                os.close(fd)


def take_handed_over(environment: "os._Environ[str]") -> HandedOver:
    """Return the descriptors that this process was handed over, and remove the variables that say so: its children were
    not. Call it once.

    Raises:
        BalloonError: the variables contradict each other, or a descriptor is not open.
    """
    names = handed_over(environment, os.getpid())
    kept = without_handing_over(environment)
    for name in [name for name in environment if name not in kept]:
        del environment[name]
    descriptors = [(name, LISTEN_FDS_START + place) for place, name in enumerate(names)]
    for name, fd in descriptors:
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except OSError as error:
            raise BalloonError(f"descriptor {fd} ({name}), of LISTEN_FDS: {error.strerror}") from error
    return HandedOver(descriptors)


def _listens_at(fd: int, path: str) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    sock = socket.socket(fileno=fd)
    try:
        return (
            sock.family == socket.AF_UNIX
            and sock.type == socket.SOCK_STREAM
            and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
            and os.path.abspath(os.fsdecode(sock.getsockname())) == os.path.abspath(path)
        )
    finally:
        sock.detach()
