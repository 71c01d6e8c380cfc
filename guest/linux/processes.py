"""The processes of one run, and their end with it."""

import contextlib
import ctypes
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from guest.linux.kernel_command_line import is_plain_path
from protocol.errors import BalloonError

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


_libc = ctypes.CDLL(None, use_errno=True)


def scratch_parent(environment: Mapping[str, str]) -> str:
    """Return a directory for the run's small files whose name the kernel's command line can carry."""
    wanted = environment.get("TMPDIR", "/tmp")
    fits = is_plain_path(wanted) and len(wanted) <= 60 and os.access(wanted, os.W_OK | os.X_OK)
    return wanted if fits else "/tmp"


def open_log(path: Path) -> int:
    """Open a new or emptied file for the kernel's messages; return its descriptor.

    For appending: the kernel and its helpers write through descriptors of their own.

    Raises:
        BalloonError: it cannot be written, or not be read again.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise BalloonError(f"--kernel-log {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BalloonError(f"--kernel-log {path}: not a regular file")
    return descriptor


def become_subreaper() -> None:
    """Adopt orphaned descendants of this process: the kernel leaves some when it dies."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def prepare_kernel_process() -> None:
    """Run in the new process before the kernel: a panic must not write its memory to a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# Waits for our end of its input. Without "done" before that, this process died of a signal that cannot be caught.
_GUARD = """
read -r group
read -r finished && exit
[ -z "$group" ] || kill -KILL "-$group"
exec "$1" rm -rf "$2"
"""


class Guard:
    """A small process that cleans up if this one is killed: ends the kernel's process group, removes its directory.

    Otherwise a helper of the kernel would live on and hold all of the guest's RAM.
    """

    def __init__(self, busybox: Path, scratch: Path) -> None:
        try:
            self._process = subprocess.Popen(
                [str(busybox), "sh", "-c", _GUARD, "guard", str(busybox), str(scratch)],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # out of reach of signals from the terminal or to our process group
            )
        except OSError as error:
            raise BalloonError(f"cannot run {busybox}: {error.strerror}") from error

    def watch(self, group: int) -> None:
        """Set the process group that is to end with this process."""
        self._say(f"{group}\n")

    def __enter__(self) -> "Guard":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say("done\ndone\n")
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def _say(self, text: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()


def children(parent: int) -> set[int]:
    """Return the process ids of all children of ``parent``, zombies included."""
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = Path("/proc", entry, "stat").read_text(errors="replace")
                if int(text.rpartition(")")[2].split()[1]) == parent:
                    found.add(int(entry))
    return found


def kill_adopted(before: set[int]) -> None:
    """Kill and reap every child that this process has and did not have in ``before``, and what these leave to us."""
    own = os.getpid()
    while adopted := children(own) - before:
        for pid in adopted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in adopted:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
