"""What a worker is kept from, by the kernel, once it runs.

A worker needs the descriptors that it is given, its own program's files, and procfs. Everything here is done without
privileges, on the one thread that the process still has. What the kernel cannot do is left out, and said.

Source: landlock(7), prctl(2) PR_SET_NO_NEW_PRIVS, capset(2). The numbers of Landlock's system calls are the same on all
machines.
"""

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from host.sandbox.seccomp import limit_system_calls, prepare_filter

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAPBSET_DROP: Final = 24
_CAPABILITIES: Final = 64

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ABI_QUERY: Final = 1
_RULE_PATH_BENEATH: Final = 1

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Rights to files that the kernel can take away, by the version of Landlock that has added the last of them."""
_TCP_SINCE: Final = 4
_TCP_RIGHTS: Final = 0b11
"""To bind and to connect."""
_SCOPES_SINCE: Final = 6
_SCOPES: Final = 0b11
"""Abstract unix sockets, and signals, of processes outside."""

_CAPSET: Final = {"x86_64": 126}.get(platform.machine(), 91)
_CAPGET: Final = _CAPSET - 1
_CAPABILITY_VERSION: Final = 0x20080522

_NETWORK: Final = "the network"

_DATA_MAX: Final = 2 << 30
"""Most bytes of private memory (RLIMIT_DATA), the stacks of all threads included. What is mapped of guests' memory is
shared and does not count, as it would for RLIMIT_AS. A session that finds no memory ends, alone."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def confine(readable: Iterable[Path]) -> list[str]:
    """Give up what a worker does not need, for good; ``readable`` are directories below which it may read files. Return
    what could not be given up."""
    prepare_filter()  # while the library's file can be read
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold memory of guests
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_MAX, _DATA_MAX))
    left = [*_give_up_privileges(), *_give_up_files(readable)]
    if limit_system_calls():
        return [
            name for name in left if name != _NETWORK
        ]  # a socket cannot be made, nor one that is given be connected
    return [*left, "system calls"]


def _give_up_privileges() -> Iterator[str]:
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        yield "new privileges"
    for number in range(_CAPABILITIES):
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # fails without effect where there are none
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    sets = ctypes.create_string_buffer(bytes(24), 24)
    if _libc.syscall(ctypes.c_long(_CAPSET), header, sets) == 0:
        return
    # A service manager's filter may refuse the call to a process that has none anyway.
    if _libc.syscall(ctypes.c_long(_CAPGET), header, sets) != 0 or any(sets.raw):
        yield "capabilities"


def _give_up_files(readable: Iterable[Path]) -> Iterator[str]:
    version = _libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_long(0), ctypes.c_long(_ABI_QUERY))
    if version < 1:
        yield "the file system"
        return
    rights = max(mask for since, mask in _FILE_RIGHTS.items() if since <= version)
    attributes = struct.pack("=Q", rights)
    attributes += struct.pack("=Q", _TCP_RIGHTS) if version >= _TCP_SINCE else b""
    attributes += struct.pack("=Q", _SCOPES) if version >= _SCOPES_SINCE else b""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    ruleset = _libc.syscall(ctypes.c_long(_CREATE_RULESET), buffer, ctypes.c_long(len(attributes)), ctypes.c_long(0))
    if ruleset < 0:
        yield "the file system"
        return
    try:
        for place in readable:
            _allow_reading(ruleset, place)
        if _libc.syscall(ctypes.c_long(_RESTRICT_SELF), ctypes.c_long(ruleset), ctypes.c_long(0)) != 0:
            yield "the file system"
        elif version < _TCP_SINCE:
            yield _NETWORK
    finally:
        os.close(ruleset)


def _allow_reading(ruleset: int, place: Path) -> None:
    try:
        fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # nothing is there to be read
    try:
        rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, fd)
        buffer = ctypes.create_string_buffer(rule, len(rule))
        number, kind = ctypes.c_long(_ADD_RULE), ctypes.c_long(_RULE_PATH_BENEATH)
        _libc.syscall(number, ctypes.c_long(ruleset), kind, buffer, ctypes.c_long(0))
    finally:
        os.close(fd)
