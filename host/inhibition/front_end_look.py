"""A look at a front-end's process in /proc: is it stopped, and does it show that discards would do harm or no good?

Its owner decides how many descriptors there are to look at, so only the first are, and on a helper thread. What the
daemon may not read (another user's descriptors) it does not see, and says so.
"""

import os
import time
from pathlib import Path
from typing import Final

from host.inhibition.inhibition import NO_SIGNS, Sign

FDS_MAX: Final = 1024
"""Descriptors of a process that are looked at. QEMU has about a hundred."""

PROCESSES_MAX: Final = 4096
"""Processes whose descriptors are remembered."""

_STOPPED: Final = {"T", "t"}
_GONE: Final = {"Z", "X"}
_USERFAULTFD: Final = "anon_inode:[userfaultfd]"
_VFIO: Final = "/dev/vfio/"
_VFIO_CONTROL: Final = "/dev/vfio/vfio"
_IOMMUFD: Final = "/dev/iommu"


_files: Final[dict[Path, tuple[float, Sign]]] = {}
"""What the descriptors of a process showed, and when: one process may have hundreds of sessions."""


_told: Final[dict[int, Sign]] = {}
"""What the descriptors of a process show, as told by who may look at them: a confined worker may not."""


def take_told(pid: int, signs: Sign) -> bool:
    """Take what the descriptors of process ``pid`` show. It counts where they cannot be looked at. Return whether that
    is new."""
    if _told.get(pid) == signs:
        return False
    if len(_told) >= PROCESSES_MAX:
        _told.clear()
    _told[pid] = signs
    return True


def look_at(pid: int, memory_bytes: int, proc: Path = Path("/proc"), *, max_age: float = 0.0) -> Sign:
    """Return what process ``pid`` shows, which has given ``memory_bytes`` to its guest. 0 is an unknown process.

    What its descriptors showed at most ``max_age`` seconds ago counts.
    """
    if pid <= 0:
        return Sign(0)
    directory = proc / str(pid)
    try:
        status = _read_status(directory / "status")
    except OSError:
        return Sign.GONE
    signs = Sign(0)
    state = status.get("State", "")[:1]
    if state in _STOPPED:
        signs |= Sign.STOPPED
    if state in _GONE:
        signs |= Sign.GONE
    held = max(_kib(status.get("VmLck", "")), _kib(status.get("VmPin", ""))) << 10
    if memory_bytes and held >= memory_bytes // 2:
        signs |= Sign.PINNED
    files = _recent_files(directory / "fd", max_age)
    return signs | (_told.get(pid, files) if Sign.UNSEEN in files else files)


def look_at_files(pid: int, proc: Path = Path("/proc")) -> Sign:
    """Return what the descriptors of process ``pid`` show."""
    return _look_at_files(proc / str(pid) / "fd")


def _recent_files(directory: Path, max_age: float) -> Sign:
    # From any helper thread: two may look at the same process at a time, and either result is right.
    now = time.monotonic()
    when, signs = _files.get(directory, (0.0, Sign(0)))
    if directory in _files and now - when < max_age:
        return signs
    signs = _look_at_files(directory)
    if len(_files) >= PROCESSES_MAX:
        _files.clear()
    _files[directory] = now, signs
    return signs


def _read_status(path: Path) -> dict[str, str]:
    lines = path.read_text(errors="replace").split("\n")  # alone: other separators may be in the process's name
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _kib(text: str) -> int:
    number = text.removesuffix(" kB")
    return int(number) if number.isascii() and number.isdecimal() else 0


def _look_at_files(directory: Path) -> Sign:
    signs = Sign(0)
    try:
        with os.scandir(directory) as entries:
            for _, entry in zip(range(FDS_MAX), entries, strict=False):
                signs |= _sign_of_entry(entry)
    except PermissionError:
        return Sign.UNSEEN
    except OSError:  # it has gone
        return signs
    return signs


def _sign_of_entry(entry: "os.DirEntry[str]") -> Sign:
    try:
        return _sign_of(os.readlink(entry.path))
    except PermissionError:
        return Sign.UNSEEN
    except OSError:  # closed meanwhile
        return NO_SIGNS


def _sign_of(target: str) -> Sign:
    if target == _USERFAULTFD:
        return Sign.USERFAULTFD
    if target == _IOMMUFD or (target.startswith(_VFIO) and target != _VFIO_CONTROL):
        return Sign.VFIO
    return Sign(0)
