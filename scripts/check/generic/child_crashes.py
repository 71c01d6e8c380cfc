"""Crashes of what a program started: a program that waits for a child may end with a status that does not show them.

virtiofsd serves in a child, in a sandbox of its own, and ends with status 1 when that was ended by a signal.
"""

import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_INFO_BYTES: Final = 64
"""Size of the first version of ``struct pidfd_info`` (Linux, include/uapi/linux/pidfd.h)."""

_GET_INFO: Final = 3 << 30 | _INFO_BYTES << 16 | 0xFF << 8 | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
_INFO_EXIT: Final = 1 << 3
_EXIT_CODE_AT: Final = 60

_CRASHES: Final = frozenset(
    [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP]
)
"""Signals that no program sends to end its child."""


class ChildCrashes:
    """The descendants of a program, and which of them crashed.

    Linux tells how a child of another process ended from 6.15 on; before that none is seen to crash.
    """

    def __init__(self) -> None:
        self._watched: dict[int, tuple[int, str]] = {}

    def watch(self, program: int) -> None:
        """Watch the descendants of the process ``program`` that are there now, those that are watched already too."""
        for pid in _descendants(program):
            if pid not in self._watched:
                with suppress(OSError):
                    name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
                    self._watched[pid] = os.pidfd_open(pid), name

    def take(self) -> str:
        """Return what a crash since the last call was, empty without one. What has ended is watched no more."""
        said = ""
        for pid, (pidfd, name) in list(self._watched.items()):
            info = bytearray(struct.pack("<Q", _INFO_EXIT).ljust(_INFO_BYTES, b"\0"))
            try:
                fcntl.ioctl(pidfd, _GET_INFO, info)
            except ProcessLookupError:
                pass  # an earlier kernel, and the process is gone
            except OSError:
                continue
            number = crash_signal(bytes(info))
            said = said or (f"{name}, a child, was ended by {number.name}" if number is not None else "")
            if number is not None or not Path(f"/proc/{pid}").exists():
                os.close(pidfd)
                del self._watched[pid]
        return said

    def close(self) -> None:
        """Watch nothing any more."""
        for pidfd, _ in self._watched.values():
            os.close(pidfd)
        self._watched.clear()


def crash_signal(info: bytes) -> signal.Signals | None:
    """Return the signal of a crash in a ``struct pidfd_info``; None where the process runs or ended otherwise."""
    (mask,) = struct.unpack_from("<Q", info)
    (status,) = struct.unpack_from("<i", info, _EXIT_CODE_AT)
    if not mask & _INFO_EXIT or not os.WIFSIGNALED(status):
        return None
    number = signal.Signals(os.WTERMSIG(status))
    return number if number in _CRASHES else None


def _descendants(program: int) -> Iterator[int]:
    with suppress(OSError):  # it may end meanwhile
        for task in Path(f"/proc/{program}/task").iterdir():
            for word in (task / "children").read_text().split():
                yield int(word)
                yield from _descendants(int(word))
