"""How much of a virtual machine's memory the host carries at this moment, read on the host.

Guests emit it only a few times a second, and no more once they are killed.
"""

import os
import stat
from pathlib import Path


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

    def _status(self, path: Path) -> os.stat_result | None:
        # The memory is the one file without a name that is large enough to hold it.
        try:
            status = path.stat()
        except OSError:
            return None
        nameless = stat.S_ISREG(status.st_mode) and status.st_nlink == 0
        return status if nameless and status.st_size >= self._memory_bytes else None
