"""The limit of open files of a process that serves virtual machines."""

import contextlib
import fcntl
import os
import resource
from typing import Final

from protocol.errors import BalloonError

FD_TABLE: Final = 16384
"""Descriptors for which the kernel's table has place from the start: 128 KiB."""

FDS_LEAST: Final = 256
"""Open files with which two virtual machines of one user have their share, see :mod:`host.peers.peers`."""


def raise_fd_limit() -> None:
    """Raise the soft limit of open files to the hard one: a virtual machine takes about a dozen, so the customary 1024
    would end at eighty machines.

    Raises:
        BalloonError: the limit stays below :data:`FDS_LEAST`.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < FDS_LEAST:
        raise BalloonError(f"at most {limit} open files are allowed (ulimit -n), and {FDS_LEAST} are needed")
    _grow_fd_table(FD_TABLE if limit == resource.RLIM_INFINITY else min(limit, FD_TABLE))


def _grow_fd_table(size: int) -> None:
    # With threads Linux waits for an RCU grace period whenever the table grows (fs/file.c, expand_fdtable()): up to
    # 100 ms for everyone, in the middle of receiving one guest's descriptors. Now there are none yet.
    with open("/dev/null", "rb") as file, contextlib.suppress(OSError):
        os.close(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, size - 1))
