"""What the launcher asks the host's kernel: a place for the guest's RAM, the RAM file, processes, the daemon."""

import contextlib
import ctypes
import os
import re
import resource
import signal
import socket
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from guest.linux.boot import is_plain_path
from protocol.errors import BalloonError
from protocol.units import format_size

_PR_SET_CHILD_SUBREAPER = 36
_SO_ACCEPTCON = 0x10000  # in the flags of /proc/net/unix: the socket listens

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class RamDirectory:
    """Where the kernel puts the file that is its RAM. ``is_tmpfs``: memory that is given back is free at once."""

    path: str
    is_tmpfs: bool


def choose_ram_directory(memory: int, environment: Mapping[str, str]) -> RamDirectory:
    """Return the best directory for a RAM file of ``memory`` bytes: a tmpfs that allows execution and has the room.

    Raises:
        BalloonError: no directory can hold it.
    """
    asked = environment.get("TMPDIR", "")
    candidates = [asked, "/dev/shm", environment.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp"]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    usable: list[RamDirectory] = []
    for path in dict.fromkeys(os.path.realpath(path) for path in candidates if os.path.isabs(path)):
        if not os.access(path, os.W_OK | os.X_OK):
            continue
        status = os.statvfs(path)
        if not status.f_flag & os.ST_NOEXEC and status.f_bavail * status.f_frsize >= memory:
            usable.append(RamDirectory(path, file_system_of(path, mounts) == "tmpfs"))
    if not usable:
        raise BalloonError(
            f"no place for {format_size(memory)} of guest memory: need a tmpfs such as /dev/shm, not mounted noexec, "
            "with that much room"
        )
    return max(usable, key=lambda directory: directory.is_tmpfs)


def file_system_of(path: str, mountinfo: str) -> str:
    """Return the type of the file system that holds the absolute, resolved ``path``, from ``/proc/PID/mountinfo``."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) < 10 or "-" not in fields:
            continue
        mount_point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):  # a later mount on the same point covers the earlier one
            best, kind = mount_point, fields[fields.index("-") + 1]
    return kind


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


def require_listening(path: Path) -> None:
    """Return if a process listens on the unix socket ``path``.

    Read from ``/proc/net/unix`` where possible: a trial connection would be a virtual machine to the daemon.

    Raises:
        BalloonError: nothing is there, it is no socket, nobody listens, or we may not connect.
    """
    try:
        kind = path.stat().st_mode
    except OSError as error:
        raise BalloonError(f"--socket-path {path}: {error.strerror} (start vhost-user-balloon first)") from error
    if not stat.S_ISSOCK(kind):
        raise BalloonError(f"--socket-path {path}: not a socket")
    if not os.access(path, os.W_OK):
        raise BalloonError(f"--socket-path {path}: {os.strerror(13)}")
    if is_listening(path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.setblocking(False)
        try:
            trial.connect(_short_name(path))
        except BlockingIOError:
            pass
        except OSError as error:
            reason = "nobody listens there" if isinstance(error, ConnectionRefusedError) else error.strerror
            raise BalloonError(f"--socket-path {path}: {reason} (start vhost-user-balloon first)") from error


def is_listening(path: Path) -> bool:
    """Tell whether ``/proc/net/unix`` shows a listener bound to ``path``, under this name or its resolved one."""
    names = {str(path), str(path.absolute()), str(path.resolve())}
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7] in names and int(fields[3], 16) & _SO_ACCEPTCON:
                return True
    return False


def _short_name(path: Path) -> str:
    """Return a name of the path that is short enough for a socket address (108 bytes)."""
    name, relative = str(path), os.path.relpath(path)
    return min(name, relative, key=len)


def become_subreaper() -> None:
    """Adopt orphaned descendants of this process: the kernel leaves some when it dies."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def prepare_kernel_process() -> None:
    """Run in the new process before the kernel: a panic must not write its memory to a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# Waits for our end of its input. Without "done" before that, we died of something that nobody can catch.
_GUARD = """
read -r group
read -r finished && exit
[ -z "$group" ] || kill -KILL "-$group"
exec "$1" rm -rf "$2"
"""


class Guard:
    """A small process that cleans up if this one is killed: ends the kernel's process group, removes its directory.

    Else a helper of the kernel would live on and hold all of the guest's RAM.
    """

    def __init__(self, busybox: Path, scratch: Path) -> None:
        try:
            self._process = subprocess.Popen(
                [str(busybox), "sh", "-c", _GUARD, "guard", str(busybox), str(scratch)],
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # no signal of a terminal or to our group is meant for it
            )
        except OSError as error:
            raise BalloonError(f"cannot run {busybox}: {error.strerror}") from error

    def watch(self, group: int) -> None:
        """Say which process group is to end with us."""
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


class RamFile:
    """The file that is a kernel's RAM, found among its open files; tells how much of it the host really holds."""

    def __init__(self, pid: int, memory: int) -> None:
        """Find the file: deleted, regular, and the only one at least as large as the memory.

        Raises:
            BalloonError: there is none.
        """
        self.descriptor = -1
        directory = Path("/proc", str(pid), "fd")
        with contextlib.suppress(OSError):
            for entry in directory.iterdir():
                status = entry.stat()
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_size >= memory:
                    self.descriptor = os.open(entry, os.O_PATH | os.O_CLOEXEC)
                    return
        raise BalloonError("cannot find the kernel's memory file")

    def resident_bytes(self) -> int:
        """Return the bytes of RAM that the host holds for the guest."""
        return os.fstat(self.descriptor).st_blocks * 512

    def close(self) -> None:
        """Let go of the file, without which its memory would stay."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
