"""The dirty log: a bitmap in which a front-end that moves a virtual machine reads which pages the device has written.

One bit is one page of 4096 bytes, by guest address. The device's writes into rings are logged; statistics, the
configuration space and hints do not write to guest memory, and the bitmap of DEVICE_INIT_ON_INFLATE is not written
while a log is kept. A *discard* changes a page to zeros and is not logged: the
destination may keep the old content of a page that a guest reported, hinted or put into the balloon, because by virtio
1.2, 5.5.6 the driver cannot rely on that content; and with PAGE_POISON, where it can, a page is discarded only if its
content was zeros before.

The front-end clears bits in another process while they are being set here, so a bit has to be set by one atomic
instruction. Python has none for shared memory, but Linux has: FUTEX_WAKE_OP ors a bit into a word of shared memory, and
then would wake waiters, which do not exist here. Where the file was cut short the system call returns EFAULT, while an
instruction of this process would end the daemon with SIGBUS. It takes about 1.5 microseconds.

Source: vhost-user specification, "Migration"; futex(2), FUTEX_WAKE_OP.
"""

import ctypes
import logging
import mmap
import os
import platform
import threading
from collections.abc import Callable
from typing import Final

from host.descriptors.received_file import check_regular, is_hugetlb
from host.memory.sigbus import address_of
from protocol.errors import VhostUserError
from protocol.memory import ADDRESS_LIMIT, PAGE_SHIFT

log = logging.getLogger(__name__)

_FUTEX_WAKE_OP: Final = 5
_FUTEX_PRIVATE_FLAG: Final = 128
_FUTEX_OP_OR: Final = 2
_FUTEX_OP_OPARG_SHIFT: Final = 8

_FUTEX_NUMBERS: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98}
"""The number of the futex system call by machine: the C library has no function for it."""

_futex: Final = _FUTEX_NUMBERS.get(platform.machine())

CAN_LOG: Final = _futex is not None
"""Whether this machine can set a bit that another process clears. Where it cannot, no log is taken, and LOG_ALL is not
offered, without which no front-end begins to move a virtual machine that runs."""

_WORD: Final = 4

_system_call = ctypes.CDLL(None, use_errno=True).syscall
_system_call.restype = ctypes.c_long
_system_call.argtypes = (
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int,
)
_no_waiter = ctypes.c_uint32(0)


def set_bit(address: int, bit: int) -> None:
    """Set bit ``bit`` (0 to 31) of the little-endian word at the aligned ``address`` of this process, atomically.

    Raises:
        OSError: EFAULT, the word is not, or no longer, mapped memory.
    """
    operation = (_FUTEX_OP_OR | _FUTEX_OP_OPARG_SHIFT) << 28 | bit << 12
    done = _system_call(
        _futex,
        ctypes.addressof(_no_waiter),
        _FUTEX_WAKE_OP | _FUTEX_PRIVATE_FLAG,
        0,
        None,
        address,
        ctypes.c_int(operation).value,
    )
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class DirtyLog:
    """The dirty log of one virtual machine. Until it is mapped, :meth:`mark` does nothing.

    Marked by workers, mapped by a helper, unmapped by the event loop; the lock keeps a mapping for as long as one of
    them marks.
    """

    def __init__(self, close_by: Callable[[Callable[[], None]], None] = lambda close: close()) -> None:
        """``close_by`` has a mapping closed, which may take long."""
        self._close_by = close_by
        self._lock = threading.Lock()
        self._mapping: mmap.mmap | None = None
        self._address = 0
        self._offset = 0
        self._size = 0
        self._call: Callable[[], None] | None = None

    def set_call(self, call: Callable[[], None] | None) -> None:
        """Have ``call`` called after each :meth:`mark`, the signal that SET_LOG_FD asks for. It holds up the
        caller of :meth:`mark` alone. An earlier one may still be called by a mark that is not finished."""
        with self._lock:
            self._call = call

    def map(self, fd: int, size: int, offset: int) -> None:
        """Take ``size`` bytes at ``offset`` of ``fd`` as the log in place of an earlier one. Does not keep ``fd``.

        Raises:
            VhostUserError: it cannot be a log: no regular file, not writable, too short. The earlier log stays.
        """
        mapping, start = _map(fd, size, offset)
        with self._lock:
            self._unmap()
            self._mapping, self._address, self._offset, self._size = mapping, address_of(mapping), offset - start, size

    def mark(self, guest_address: int, length: int) -> None:
        """Note that the pages of ``length`` bytes at ``guest_address`` have been written. Never raises.

        Pages past the end of the log are not noted: the log is too short for them. Call it after the writes: the
        front-end clears a bit and then reads the page.
        """
        with self._lock:
            if self._mapping is None:
                return
            call = self._call
            last = min((guest_address + length - 1) >> PAGE_SHIFT, 8 * self._size - 1)
            try:
                for page in range(guest_address >> PAGE_SHIFT, last + 1):
                    at = self._offset + page // 8
                    set_bit(self._address + at // _WORD * _WORD, at % _WORD * 8 + page % 8)
            except OSError as error:
                # No warning: a front-end can cause this at any rate.
                log.info("the dirty log is gone, nothing is logged any more: %s", error.strerror)
                self._unmap()
        # Without the lock, which the event loop takes too: a front-end can block this call, see CallFile.
        if call is not None:
            call()

    def close(self) -> None:
        """Unmap the log, if there is one."""
        with self._lock:
            self._unmap()

    def _unmap(self) -> None:
        if self._mapping is not None:
            self._close_by(self._mapping.close)
            self._mapping = None


def _map(fd: int, size: int, offset: int) -> tuple[mmap.mmap, int]:
    if not CAN_LOG:
        raise VhostUserError(f"a dirty log cannot be kept on {platform.machine()}")
    if size == 0 or offset + size > ADDRESS_LIMIT:
        raise VhostUserError(f"a dirty log of {size} bytes at {offset:#x} is empty or exceeds 2**64")
    status = check_regular(fd, "the file of the dirty log", writable=False)
    if is_hugetlb(fd):
        # mmap waits for the file's lock, which the front-end may hold, and Python's mmap blocks all threads meanwhile.
        raise VhostUserError("the file of the dirty log lies in huge pages")
    if offset + size > status.st_size:
        raise VhostUserError(f"a dirty log of {size} bytes at {offset} exceeds its file of {status.st_size} bytes")
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    try:
        return mmap.mmap(fd, offset + size - start, offset=start), start
    except (OSError, ValueError, OverflowError) as error:
        raise VhostUserError(f"the dirty log cannot be mapped: {error}") from error
