"""What a descriptor is, for a recording."""

import os
import stat
from typing import Final

from host.descriptors.received_file import FileKind, file_system_type, kind_at_once
from protocol.errors import VhostUserError
from protocol.recording.records import FileFact

REFUSED: Final = FileFact("refused")
"""A descriptor that was closed as soon as it came."""

_NAMES: Final = {0x01021994: "tmpfs file", 0x958458F6: "hugetlbfs file"}
_SIGNALS: Final = {FileKind.EVENTFD: "eventfd", FileKind.PIPE: "pipe", FileKind.SOCKET: "socket"}


def describe_file(fd: int) -> FileFact:
    """Return what ``fd`` is. It was examined before (:mod:`host.descriptors.received_file`), so its file system answers
    at once."""
    try:
        kind = kind_at_once(fd)
        if kind in _SIGNALS:
            return FileFact(_SIGNALS[kind])
        status = os.fstat(fd)
        if stat.S_ISFIFO(status.st_mode):
            return FileFact("pipe")
        if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
            return FileFact("memfd", status.st_size)
        return FileFact(_NAMES.get(file_system_type(fd), "file"), status.st_size)
    except (OSError, VhostUserError):
        return FileFact("unknown")
