"""A service manager that keeps descriptors, as the process under test sees it."""

import contextlib
import os
import socket
from pathlib import Path

from host.service_manager.notification import parse_notification
from host.service_manager.service_manager import HandedOver, ServiceManager


class DescriptorStore:
    """The manager's end: takes what it is told when it is looked at. ``side`` is the daemon's."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.side = ServiceManager(str(path))
        self.kept: list[tuple[str, int]] = []
        self.told: list[str] = []
        """What was said since this was cleared: "+" or "-" and a name."""

    def look(self) -> list[str]:
        """Take in what was said; return the names of what is kept."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, fds, _, _ = socket.recv_fds(self.socket, 4096, 10)
                fields = parse_notification(data)
                name = fields["FDNAME"]
                for kept in [kept for kept in self.kept if "FDSTOREREMOVE" in fields and kept[0] == name]:
                    self.kept.remove(kept)
                    os.close(kept[1])
                self.kept += [(name, fd) for fd in fds]
                self.told.append(("+" if fds else "-") + name)
        return sorted(name for name, _ in self.kept)

    def hear(self) -> list[str]:
        """Return what was said since this was last called, in order."""
        self.look()
        told, self.told = self.told, []
        return told

    def hand_over(self) -> HandedOver:
        """Return what is kept, as the next daemon has it."""
        self.look()
        return HandedOver([(name, os.dup(fd)) for name, fd in self.kept])

    def fd(self, name: str) -> int:
        """Return what is kept by a name."""
        self.look()
        return next(fd for kept, fd in self.kept if kept == name)

    def close(self) -> None:
        """Forget all."""
        self.look()
        for _, fd in self.kept:
            os.close(fd)
        self.side.close()
        self.socket.close()
