"""The names by which ``ps`` and ``top`` show a process, and what ties it to its parent."""

import contextlib
import ctypes
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36

_ARG_START: Final = 47 - 3
"""Place of ``arg_start`` in /proc/self/stat after the name in parentheses; ``arg_end`` follows (proc(5))."""

_prctl = ctypes.CDLL(None, use_errno=True).prctl


def set_title(name: str, title: str) -> None:
    """Have this process shown as ``title`` by ``ps``, cut to the length of its command line, and as ``name`` (15 bytes)
    by ``top``."""
    _prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(") ")[2].split()
        start, end = int(fields[_ARG_START + 1]), int(fields[_ARG_START + 2])
        if 0 < start < end:
            data = title.encode()[: end - start - 1]
            ctypes.memmove(start, data.ljust(end - start, b"\0"), end - start)


def die_with_parent(number: int) -> None:
    """Have the kernel send signal ``number`` to this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def adopt_orphans() -> None:
    """Have the children of children become children of this process when their own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
