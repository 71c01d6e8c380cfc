"""Mappings of files that another process may cut short, which costs a queue and not the process.

A load or a store past the end of a mapped file is answered by the kernel with SIGBUS, which ends the process: with it
every virtual machine's device. A handler that Python's ``signal`` module calls is no help, as the instruction is run
again, and fails again, before it is called. The handler here is called by the kernel itself. It lays empty memory of
this process over the mapping and notes that it is lost; the instruction then goes on with zeros, and the user of the
mapping asks :attr:`GuardedMapping.lost` before it acts on what it read.

It may be Python because the faults it is for are those of ``memoryview`` items: the thread then holds the interpreter's
lock, in a call that may run Python code as well. The same signal comes where a file system has no page left for a hole,
and where the memory itself is broken.

Source: mmap(2), "SIGBUS"; sigaction(2), "SA_SIGINFO".
"""

import ctypes
import mmap
import platform
import signal
from typing import Final

_MACHINES: Final = frozenset({"x86_64", "aarch64", "riscv64", "loongarch64"})
"""Where a ``struct sigaction`` of the C library and the beginning of a ``siginfo_t`` are laid out as below."""
_SA_SIGINFO: Final = 4
_MAP_FIXED: Final = 0x10


class _SignalInformation(ctypes.Structure):
    _fields_ = (
        ("si_signo", ctypes.c_int),
        ("si_errno", ctypes.c_int),
        ("si_code", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("si_addr", ctypes.c_void_p),
    )


class _SignalAction(ctypes.Structure):
    _fields_ = (
        ("sa_sigaction", ctypes.c_void_p),
        ("sa_mask", ctypes.c_ubyte * 128),
        ("sa_flags", ctypes.c_int),
        ("sa_restorer", ctypes.c_void_p),
    )


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_SignalInformation), ctypes.c_void_p)

# Unlike a CDLL, a PyDLL keeps the interpreter's lock over a call.
_library = ctypes.PyDLL(None)
_mmap = _library.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)

_guarded: "Final[dict[int, GuardedMapping]]" = {}
_earlier = _SignalAction()


def address_of(mapping: mmap.mmap) -> int:
    """Return where in this process ``mapping`` begins."""
    byte = ctypes.c_char.from_buffer(mapping)  # gone with this call: a view would keep the mapping from being closed
    return ctypes.addressof(byte)


class GuardedMapping:
    """A shared mapping of ``length`` bytes of a file from ``offset`` on, both multiples of the file's page size.

    Raises:
        OSError: the kernel refuses to map it.
        ValueError: the file ends before it.
    """

    def __init__(self, fd: int, length: int, offset: int) -> None:
        self.lost = False
        """Whether the mapping was accessed where the file has no memory. It holds zeros of
        this process since then."""
        self.mapping: Final = mmap.mmap(fd, length, offset=offset)
        self.length: Final = length
        self.address: Final = address_of(self.mapping)
        _guarded[self.address] = self

    def close(self) -> None:
        """Unmap it. No view of it may be left.

        Raises:
            BufferError: one is.
        """
        if not self.mapping.closed:
            _guarded.pop(self.address, None)  # first: the next mapping may get the same address
            self.mapping.close()

    def lose(self) -> bool:
        """Lay empty memory over the mapping. Return False where the kernel has none."""
        self.lost = True
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
        return bool(_mmap(self.address, self.length, protection, flags, -1, 0) == self.address)


def _on_bus_error(number: int, information: "ctypes._Pointer[_SignalInformation]", _: int | None) -> None:
    address = information.contents.si_addr or 0
    for guarded in tuple(_guarded.values()):
        if guarded.address <= address < guarded.address + guarded.length and guarded.lose():
            return
    # Not ours: the instruction that is run again meets what would have happened without us.
    _library.sigaction(number, ctypes.byref(_earlier), None)


_handler: Final = _Handler(_on_bus_error)


def guard_mappings() -> bool:
    """Handle SIGBUS from now on. Return False, with nothing done, on a machine that this is not written for."""
    if platform.machine() not in _MACHINES:
        return False
    action = _SignalAction(sa_sigaction=ctypes.cast(_handler, ctypes.c_void_p).value, sa_flags=_SA_SIGINFO)
    return bool(_library.sigaction(int(signal.SIGBUS), ctypes.byref(action), ctypes.byref(_earlier)) == 0)
