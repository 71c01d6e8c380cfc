"""Descriptors that a proxy has received, or made to send them."""

import os
import socket
from collections.abc import Iterable
from typing import Final

from host.descriptors.received_file import FileKind, kind_at_once
from protocol.errors import VhostUserError
from scripts.check.faults.fault_script import FileType

_MEMORY_BYTES: Final = 1 << 20


class OpenFile:
    """An open descriptor, which is closed with the last reference to this object: a message that is delayed, a copy of
    it, and the memory that a proxy remembers may all need it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)

    def kind(self) -> FileKind | None:
        """Return what it is, None for a type that is not on the daemon's list. Never waits."""
        try:
            return kind_at_once(self.fd)
        except VhostUserError:
            return None


def make_file(kind: FileType) -> OpenFile:
    """Return a new descriptor of this type. The other end of a pipe or a socket is closed."""
    match kind:
        case FileType.EVENTFD:
            return OpenFile(os.eventfd(0))
        case FileType.PIPE:
            reading, writing = os.pipe()
            os.close(writing)
            return OpenFile(reading)
        case FileType.SOCKET:
            mine, theirs = socket.socketpair()
            theirs.close()
            return OpenFile(mine.detach())
        case FileType.MEMORY:
            file = OpenFile(os.memfd_create("fault", os.MFD_CLOEXEC))
            os.ftruncate(file.fd, _MEMORY_BYTES)
            return file
        case FileType.NULL:
            return OpenFile(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))


def to_send(files: Iterable[object]) -> list[OpenFile]:
    """Return the files of a step: those that were received, and new ones."""
    return [file if isinstance(file, OpenFile) else make_file(FileType(file)) for file in files]
