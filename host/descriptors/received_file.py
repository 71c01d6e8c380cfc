"""The type of a received file descriptor, determined before any other use of it, without a call to a file system that
may never answer.

A peer can pass any descriptor. Calls on a file of a file system in user space (FUSE) take as long as its server
decides. Closing a TCP socket with SO_LINGER can take as long. Reading a signalfd takes the *reader's* signals. So only
listed types are accepted (:class:`FileKind`); any other descriptor is refused and closed by :class:`Helpers`.

Two checks tell them apart:

* :func:`kind_at_once` reads a name in procfs, the seals and two numbers of a socket. None of these calls asks a file
  system or waits for a lock, so the event loop may make them.
* :func:`kind_of_file` asks the file system for its type. FUSE and network file systems may never answer (Linux,
  fs/fuse/inode.c, fuse_statfs), hence only a helper calls it. The answer depends on the file alone and not on a mount
  table, which another mount namespace does not share.
"""

import ctypes
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterable
from enum import Enum
from typing import Final

from protocol.errors import VhostUserError

SOCKET_NAME: Final = "socket:["
_PIPE_NAME: Final = "pipe:["
_EVENTFD_NAME: Final = "anon_inode:[eventfd]"
_ANONYMOUS_NAME: Final = "anon_inode:"
"""How procfs names descriptors that have no path (proc(5), /proc/pid/fd). A path never begins like this."""

HUGETLBFS: Final = 0x958458F6
_LOCAL_FILE_SYSTEMS: Final = frozenset(
    (
        0x01021994,  # tmpfs
        HUGETLBFS,
        0x858458F6,  # ramfs
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x794C7630,  # overlay: a file that is open for writing lies in its upper layer, which is never remote
        0xF2F52010,  # f2fs
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # zfs
        0x3153464A,  # jfs
        0x4D44,  # vfat
        0x2011BAB0,  # exfat
        0x7366746E,  # ntfs3
    )
)
"""File systems that answer by themselves, by f_type (linux/magic.h, statfs(2))."""

_STATFS_BYTES: Final = 256
"""More than struct statfs has on any machine. ``f_type`` is a long at its begin."""

_fstatfs = ctypes.CDLL(None, use_errno=True).fstatfs


class FileKind(Enum):
    """The types of descriptors that are taken. The value is the name in messages."""

    MEMORY = "memory file"
    """A file of memfd_create, tmpfs or hugetlbfs."""
    FILE = "file"
    """An ordinary file of a local file system."""
    EVENTFD = "eventfd"
    PIPE = "pipe"
    SOCKET = "unix stream socket"


SIGNALS: Final = frozenset((FileKind.EVENTFD, FileKind.PIPE, FileKind.SOCKET))
"""What a kick, a call or an error descriptor may be. User Mode Linux sends sockets."""


def kind_at_once(fd: int) -> FileKind | None:
    """Return the type of ``fd``, or None for a file that :func:`kind_of_file` has to examine. Never waits.

    Raises:
        VhostUserError: it is not on the list.
    """
    name = _name(fd)
    if name == _EVENTFD_NAME:
        return FileKind.EVENTFD
    if name.startswith(_PIPE_NAME):
        return FileKind.PIPE
    if name.startswith(SOCKET_NAME):
        return _kind_of_socket(fd)
    if not name.startswith("/"):
        raise VhostUserError(f"a descriptor of type {name.removeprefix(_ANONYMOUS_NAME)} is not taken")
    return FileKind.MEMORY if has_seals(fd) else None


def kind_of_file(fd: int) -> FileKind:
    """Return the type of the file ``fd``. May block in its file system.

    Raises:
        VhostUserError: it is not on the list.
    """
    magic = file_system_type(fd)
    if magic not in _LOCAL_FILE_SYSTEMS:
        raise VhostUserError(f"a file of a file system of type {magic:#x} is not taken, it may never answer")
    mode = os.fstat(fd).st_mode  # of a local file system: answered at once
    if stat.S_ISREG(mode):
        return FileKind.FILE
    if stat.S_ISFIFO(mode):
        return FileKind.PIPE
    raise VhostUserError("a directory or a device is not taken")


def signal_kind(fd: int) -> FileKind:
    """Return which of :data:`SIGNALS` ``fd`` is. It was on the list when it came, so nothing here waits.

    Raises:
        VhostUserError: none of them.
    """
    kind = kind_at_once(fd)
    if kind is None and stat.S_ISFIFO(os.fstat(fd).st_mode):
        return FileKind.PIPE
    if kind is None or kind not in SIGNALS:
        raise VhostUserError("only an eventfd, a pipe or a unix stream socket can be a kick, call or error descriptor")
    return kind


def is_connected_to(fd: int, address: str | bytes) -> bool:
    """Return whether the unix socket ``fd`` is connected to ``address``; to none that has no name. Never waits."""
    sock = socket.socket(fileno=fd)
    try:
        return bool(address) and bool(sock.getpeername() == address)
    except OSError:
        return False
    finally:
        sock.detach()


def has_seals(fd: int) -> bool:
    """Return whether ``fd`` is a file of memfd_create, tmpfs or hugetlbfs: only these have seals. Never waits."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def file_system_type(fd: int) -> int:
    """Return ``f_type`` of the file system of ``fd``. Never waits for a memory file.

    Raises:
        VhostUserError: it cannot be had.
    """
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    while _fstatfs(fd, answer) < 0:
        if ctypes.get_errno() != errno.EINTR:
            raise VhostUserError(f"the file system of a file does not answer: {os.strerror(ctypes.get_errno())}")
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF


def is_hugetlb(fd: int) -> bool:
    """Return whether ``fd`` is a file in huge pages. Never waits."""
    return has_seals(fd) and file_system_type(fd) == HUGETLBFS


def check_regular(fd: int, what: str, *, writable: bool) -> os.stat_result:
    """Return the status of ``fd``, which ``what`` names in messages.

    Raises:
        VhostUserError: it is not a regular file, or not open for reading and writing where it has to be ``writable``.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise VhostUserError(f"{what} is not a regular file")
    if writable and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise VhostUserError(f"{what} is not open for reading and writing")
    return status


def close_files(fds: Iterable[int]) -> None:
    """Close ``fds`` on this thread, where that may wait."""
    for fd in fds:
        os.close(fd)


def _name(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError as error:
        raise VhostUserError(f"a descriptor cannot be looked at: {error.strerror}") from error


def _kind_of_socket(fd: int) -> FileKind:
    sock = socket.socket(fileno=fd)
    try:
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            raise VhostUserError("a socket that is not a unix stream socket is not taken")
        sock.getpeername()
    except OSError as error:
        # A listening one has a backlog, whose connections can hold descriptors that the daemon could not get at.
        raise VhostUserError("a socket that is not connected is not taken") from error
    finally:
        sock.detach()
    return FileKind.SOCKET
