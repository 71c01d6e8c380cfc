"""How much of a virtual machine's memory the host carries at this moment, read on the host.

Guests emit it only a few times a second, and no more once they are killed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from protocol.memory import PAGE_SIZE


class MemoryFile:
    """The file that is a machine's memory, found among the open files of the machine's process.

    It is never opened: an open descriptor would keep the memory of a machine that was killed.
    """

    def __init__(self, memory_bytes: int, proc: Path = Path("/proc")) -> None:
        self._memory_bytes = memory_bytes
        self._proc = proc
        self._found: tuple[Path, int] | None = None

    def resident_bytes(self, pid: int) -> int | None:
        """Return what the host carries for the machine whose process is ``pid``; ``None`` if that is unknown."""
        if self._found is not None:
            path, inode = self._found
            status = self._status(path)
            if status is not None and status.st_ino == inode:
                return status.st_blocks * 512
            self._found = None
        try:
            paths = list((self._proc / str(pid) / "fd").iterdir())
        except OSError:
            return None
        for path in paths:
            status = self._status(path)
            if status is not None:
                self._found = path, status.st_ino
                return status.st_blocks * 512
        return None

    def residency(self, pid: int) -> bytearray | None:
        """Return one byte for each page of the memory, 1 for one that the host carries; ``None`` if that is unknown.

        A file that is longer than the memory has it at its end: User Mode Linux leaves a gap before it. For this the
        file is open for a moment. A page in swap counts as carried: it is data of the file.
        """
        if self.resident_bytes(pid) is None or self._found is None:
            return None
        found = bytearray(-(-self._memory_bytes // PAGE_SIZE))
        try:
            fd = os.open(self._found[0], os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            size = os.fstat(fd).st_size
            first = (size - self._memory_bytes) // PAGE_SIZE
            for begin, end in _extents(fd, first * PAGE_SIZE, size):
                pages = (end - begin) // PAGE_SIZE
                found[begin // PAGE_SIZE - first : end // PAGE_SIZE - first] = b"\1" * pages
        except OSError:
            return None
        finally:
            os.close(fd)
        return found

    def _status(self, path: Path) -> os.stat_result | None:
        # The memory is the one file without a name that is large enough to hold it.
        try:
            status = path.stat()
        except OSError:
            return None
        nameless = stat.S_ISREG(status.st_mode) and status.st_nlink == 0
        return status if nameless and status.st_size >= self._memory_bytes else None


def _extents(fd: int, first: int, size: int) -> Iterator[tuple[int, int]]:
    # Begin and end of each run of data from `first` on, of `size` bytes (lseek(2): SEEK_DATA, SEEK_HOLE).
    end = first
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # no data up to the end
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end
