"""Whether two descriptors are one open file: a service manager keeps such a file only once, by its first name."""

import ctypes
import fcntl
import os
import platform
from typing import Final

_F_DUPFD_QUERY: Final = 1027
"""Linux 6.10 (include/uapi/linux/fcntl.h)."""

_KCMP: Final = {"x86_64": 312, "aarch64": 272, "riscv64": 272}.get(platform.machine())
_KCMP_FILE: Final = 0

_syscall = ctypes.CDLL(None, use_errno=True).syscall


def is_same_file(first: int, second: int) -> bool:
    """Return whether two descriptors of this process are one open file description; False where the kernel does not
    tell."""
    try:
        return bool(fcntl.fcntl(first, _F_DUPFD_QUERY, second))
    except OSError:
        pid = os.getpid()
        return _KCMP is not None and _syscall(_KCMP, pid, pid, _KCMP_FILE, first, second) == 0
