"""The files of a run, and the removal of what a killed run has left.

Directories and memory cgroups of a run carry the id of its process in their names. One whose process has ended is
removed.
"""

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError

DIRECTORY_PREFIX: Final = "balloon-run-"
GROUP_PREFIX: Final = "vhost-user-balloon-run-"

SOCKET: Final = "socket"
CONTROL: Final = "control"
MOST_SOCKET_BYTES: Final = 107
"""Most bytes of the path of a unix socket, without the NUL at its end."""

_RANDOM: Final = 8
_LONGEST_ID: Final = 7
_BELOW: Final = (
    len("/") + len(DIRECTORY_PREFIX) + _LONGEST_ID + len("-") + _RANDOM + len("/") + max(len(SOCKET), len(CONTROL))
)


def directory_parent(candidates: Sequence[str] | None = None) -> Path:
    """Return the directory for temporary files, or another one where the path of a socket in it would be too long.

    Raises:
        BalloonError: no directory is suitable.
    """
    for name in candidates or (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if len(os.fsencode(name)) + _BELOW <= MOST_SOCKET_BYTES and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    raise BalloonError("no directory for temporary files with a path short enough for a socket: set TMPDIR")


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """Make a directory for the files of one run, and remove it at the end."""
    parent = directory_parent()
    remove_old_directories(parent)
    prefix = f"{DIRECTORY_PREFIX}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def remove_old_directories(parent: Path) -> None:
    """Remove the directories of runs that are over."""
    for path in _left(parent, DIRECTORY_PREFIX + r"([0-9]+)-\w+"):
        shutil.rmtree(path, ignore_errors=True)


def remove_old_groups(parent: Path) -> None:
    """Remove the cgroups of runs that are over. One that still has processes is left to the next run."""
    for path in _left(parent, GROUP_PREFIX + r"([0-9]+)"):
        with contextlib.suppress(OSError):
            path.rmdir()


def _left(parent: Path, pattern: str) -> list[Path]:
    found = []
    with contextlib.suppress(OSError):
        for path in parent.iterdir():
            match = re.fullmatch(pattern, path.name)
            if match is not None and _is_ours(path) and not lives(int(match[1])):
                found.append(path)
    return found


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def lives(pid: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
