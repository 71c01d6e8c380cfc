"""The effect: give pages of a file back to the system. The only place of the project that discards.

``fallocate(PUNCH_HOLE | KEEP_SIZE)`` needs the file descriptor only, no mapping of the guest's memory, works for every
process that has the pages mapped, and is called through ctypes because that lets other threads run meanwhile
(``mmap.madvise`` would hold the interpreter for the whole call).
"""

import ctypes
from typing import Final

_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_MODE: Final = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)
# fallocate64 takes 64-bit offsets on every architecture; on 64-bit ones it is fallocate. The caller below converts the
# offsets itself, because that takes half the time that declared argument types do.
_fallocate = _libc.fallocate64
_fallocate.restype = ctypes.c_int
_int64 = ctypes.c_int64


def punch_hole(fd: int, offset: int, length: int) -> int:
    """Discard ``length`` bytes at file ``offset``: they read as zero afterwards and occupy nothing.

    Returns 0, or the errno of the failure, for example EPERM for a file sealed against writing or EOPNOTSUPP for a
    file system without holes. Both numbers must be whole pages of the file, or the edges are overwritten with zeros.
    """
    if _fallocate(fd, _MODE, _int64(offset), _int64(length)) == 0:
        return 0
    return ctypes.get_errno()
