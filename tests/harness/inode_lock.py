"""Holds up every process that works on a file: with the lock of its inode, for as long as a test likes.

``write`` to a file of tmpfs takes that lock and then reads what it is to write. Here that is memory whose faults a
userfaultfd catches and leaves unanswered (``man 2 userfaultfd``).
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import until

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_REGISTER_MODE_MISSING = 1


@contextlib.contextmanager
def inode_locked(fd: int) -> Iterator[None]:
    """Hold the lock of the inode of ``fd``; skip the test where this user may not catch faults of the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    catcher = libc.syscall(_SYS_USERFAULTFD[platform.machine()], os.O_CLOEXEC)
    if catcher < 0:
        pytest.skip(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    fcntl.ioctl(catcher, _UFFDIO_API, bytearray(struct.pack("QQQ", _UFFD_API, 0, 0)))
    region = struct.pack("QQQQ", address, mmap.PAGESIZE, _REGISTER_MODE_MISSING, 0)
    fcntl.ioctl(catcher, _UFFDIO_REGISTER, bytearray(region))
    writer = threading.Thread(target=lambda: libc.pwrite(fd, ctypes.c_void_p(address), 1, 0), daemon=True)
    writer.start()
    call = Path(f"/proc/self/task/{writer.native_id}/wchan")
    until(lambda: "userfault" in call.read_text(), "the writer waits for its page")
    try:
        yield
    finally:
        os.close(catcher)  # the fault is answered by the kernel then
        writer.join()
