"""The system calls of this process, limited for good by libseccomp, which knows the numbers of calls on each machine.

Source: seccomp_init(3), seccomp_rule_add(3), seccomp_load(3), seccomp.h of libseccomp 2.5.
"""

import ctypes
import errno
from functools import cache
from typing import Final

from host.sandbox.system_calls import ALLOWED, CONDITIONAL, ENDS, REFUSED, Condition

_LIBRARY: Final = "libseccomp.so.2"

_ALLOW, _END = 0x7FFF0000, 0x80000000
_ABSENT, _REFUSE = 0x00050000 | errno.ENOSYS, 0x00050000 | errno.EPERM

_NO_MITIGATION: Final = 7
"""SCMP_FLTATR_CTL_SSB: without it kernels before 5.16 slow the whole process down."""
_OPTIMIZE: Final = 8
_BINARY_TREE: Final = 2

_MASKED_EQ: Final = 7


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


class _Filter:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ABSENT)))
        self.is_whole = bool(self._context)
        if not self.is_whole:
            return
        library.seccomp_attr_set(self._context, _NO_MITIGATION, ctypes.c_uint32(1))
        library.seccomp_attr_set(self._context, _OPTIMIZE, ctypes.c_uint32(_BINARY_TREE))
        for names in ALLOWED.values():
            for name in names.split():
                self._add(_ALLOW, name)
        for name, conditions in CONDITIONAL.items():
            self._add(_ALLOW, name, conditions)
        for name in REFUSED.split():
            self._add(_REFUSE, name)
        for name in ENDS.split():
            self._add(_END, name)

    def _add(self, action: int, name: str, conditions: tuple[Condition, ...] = ()) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # this machine does not have it
        each = [_Comparison(one.number, _MASKED_EQ, one.mask, one.value) for one in conditions]
        comparisons = (_Comparison * len(each))(*each)
        added = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, ctypes.c_uint(len(conditions)), comparisons
        )
        self.is_whole &= added == 0

    def load(self) -> bool:
        return self.is_whole and self._library.seccomp_load(self._context) == 0


@cache
def _filter() -> _Filter | None:
    try:
        return _Filter(ctypes.CDLL(_LIBRARY))
    except (OSError, AttributeError):
        return None


def prepare_filter() -> None:
    """Build what :func:`limit_system_calls` takes, for all processes that are forked from this one."""
    _filter()


def limit_system_calls() -> bool:
    """Limit this process, which has one thread, to :mod:`host.sandbox.system_calls` for good. Return False if that
    cannot be: without libseccomp, or on a kernel without seccomp."""
    calls = _filter()
    return calls is not None and calls.load()
