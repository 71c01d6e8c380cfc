"""Mappings of files that another process may cut short: that stops a queue, and the daemon goes on.

On a load or a store past the end of a mapped file the kernel sends SIGBUS, which ends the process, and with it every
virtual machine's device. A handler set with Python's ``signal`` module does not help: it runs after the instruction,
which is repeated, and fails again, before that. The handler here is called by the kernel itself. It maps anonymous
memory over the mapping and marks it as lost; the instruction then continues with zeros, and the user of the mapping
checks :attr:`GuardedMapping.lost` before it acts on the values read.

The handler can be Python code because it serves faults of ``memoryview`` items: the thread then holds the interpreter's
lock, in a call that may run Python code as well. The same signal comes where a file system has no page left for a hole,
and for broken memory.

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
        """Whether the mapping was accessed past the end of its file. It holds zeros of this process since then."""
        self.mapping: Final = mmap.mmap(fd, length, offset=offset)
        self.length: Final = length
        self.address: Final = address_of(self.mapping)
        _guarded[self.address] = self

    def close(self) -> None:
        """Unmap it. All views of it must be released before.

        Raises:
            BufferError: a view exists.
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
    # Another fault: the repeated instruction has the effect that it would have without this handler.
    _library.sigaction(number, ctypes.byref(_earlier), None)


_handler: Final = _Handler(_on_bus_error)


def guard_mappings() -> bool:
    """Handle SIGBUS from now on. Return False, without effect, on an unsupported machine."""
    if platform.machine() not in _MACHINES:
        return False
    action = _SignalAction(sa_sigaction=ctypes.cast(_handler, ctypes.c_void_p).value, sa_flags=_SA_SIGINFO)
    return bool(_library.sigaction(int(signal.SIGBUS), ctypes.byref(action), ctypes.byref(_earlier)) == 0)
