"""The file that is the guest's RAM: the directory where the kernel makes it, and how much of it the host holds."""

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BalloonError
from protocol.units import format_size


@dataclass(frozen=True, slots=True)
class RamDirectory:
    """Where the kernel puts the file that is its RAM. ``is_tmpfs``: memory that is given back is free at once."""

    path: str
    is_tmpfs: bool


def choose_ram_directory(memory: int, environment: Mapping[str, str]) -> RamDirectory:
    """Return the best directory for a RAM file of ``memory`` bytes: a tmpfs that allows execution and has the room.

    Raises:
        BalloonError: no directory can hold it.
    """
    asked = environment.get("TMPDIR", "")
    candidates = [asked, "/dev/shm", environment.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp"]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    usable: list[RamDirectory] = []
    for path in dict.fromkeys(os.path.realpath(path) for path in candidates if os.path.isabs(path)):
        if not os.access(path, os.W_OK | os.X_OK):
            continue
        status = os.statvfs(path)
        if not status.f_flag & os.ST_NOEXEC and status.f_bavail * status.f_frsize >= memory:
            usable.append(RamDirectory(path, file_system_of(path, mounts) == "tmpfs"))
    if not usable:
        raise BalloonError(
            f"no place for {format_size(memory)} of guest memory: need a tmpfs such as /dev/shm, not mounted noexec, "
            "with that much room"
        )
    return max(usable, key=lambda directory: directory.is_tmpfs)


def file_system_of(path: str, mountinfo: str) -> str:
    """Return the type of the file system that holds the absolute, resolved ``path``, from ``/proc/PID/mountinfo``."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) < 10 or "-" not in fields:
            continue
        mount_point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):  # a later mount on the same point covers the earlier one
            best, kind = mount_point, fields[fields.index("-") + 1]
    return kind


class RamFile:
    """The file that is a kernel's RAM, found among its open files; tells how much of it the host really holds."""

    def __init__(self, pid: int, memory: int) -> None:
        """Find the file: deleted, regular, and the only one at least as large as the memory.

        Raises:
            BalloonError: the process has no such file open.
        """
        self.descriptor = -1
        directory = Path("/proc", str(pid), "fd")
        with contextlib.suppress(OSError):
            for entry in directory.iterdir():
                status = entry.stat()
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_size >= memory:
                    self.descriptor = os.open(entry, os.O_PATH | os.O_CLOEXEC)
                    return
        raise BalloonError("cannot find the kernel's memory file")

    def resident_bytes(self) -> int:
        """Return the bytes of RAM that the host holds for the guest."""
        return os.fstat(self.descriptor).st_blocks * 512

    def close(self) -> None:
        """Close the file: an open descriptor would keep its memory allocated."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
