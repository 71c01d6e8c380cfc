"""A first look at file descriptors that a front-end passed, before anything is done with them.

A file of a file system in user space (FUSE), or of a remote one, answers as slowly as the process that serves it likes:
reading its size, polling and even *closing* it can take for ever. In the daemon's event loop that would stop every
virtual machine, so such descriptors are recognised without touching them, and closed on a thread that may hang.
"""

import fcntl
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

_SERVED_ELSEWHERE: Final = frozenset(
    ("fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "ocfs2", "gfs2", "lustre")
)

_KERNELS_OWN: Final = ("anon_inode:", "socket:", "pipe:")
"""How procfs names descriptors that are no files. A path never begins like this."""


def served_elsewhere(fd: int) -> str | None:
    """Return the type of the file system of ``fd`` if another process or machine serves it, else None.

    Nothing here asks the file system itself. A file of a mount that this process cannot see is not trusted either: a
    peer may make a mount namespace of its own. Memory is recognised wherever it was mounted: only memfd, tmpfs and
    hugetlb files have seals.
    """
    if os.readlink(f"/proc/self/fd/{fd}").startswith(_KERNELS_OWN) or _has_seals(fd):
        return None
    kind = _file_system_types().get(_mount_id(fd), "unknown")
    return kind if kind == "unknown" or kind.partition(".")[0] in _SERVED_ELSEWHERE else None  # "fuse.sshfs"


def _has_seals(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _mount_id(fd: int) -> str:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("mnt_id:"):
            return line.split()[1]
    return ""


def _file_system_types() -> dict[str, str]:
    # mountinfo: "<mount id> <parent> ... - <type> <source> <options>" (Linux, Documentation/filesystems/proc.rst).
    types: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, dash, after = line.partition(" - ")
        if dash:
            types[before.split()[0]] = after.split()[0]
    return types


def close_aside(fds: Iterable[int]) -> None:
    """Close ``fds`` on a thread of their own, which nobody waits for."""
    threading.Thread(target=_close_all, args=(tuple(fds),), daemon=True, name="close").start()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
