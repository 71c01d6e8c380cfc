"""The project's programs as processes without the time that Python takes to load them: a process that has loaded them
forks each.

The process runs this module. It gets a request for each program on a socket: the module, its words, its environment,
the numbers that the descriptors have for it, and as last descriptor a socket on which its process id and the status of
its end are told. The child goes on as an interpreter does that is asked for ``python -m MODULE WORD ...``. When the
socket closes, what still runs is killed.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_FDS_MOST: Final = 64
_REQUEST_BYTES_MOST: Final = 1 << 17
_PROGRAMS: Final = ("host.__main__", "guest.__main__", "guest.linux.__main__")
_LOADED_LATER: Final = ("host.daemon", "host.supervisor", "guest.vmm")

_LIMITS: Final = (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE)
"""What a test may set for the processes that it starts, beside the mask of file modes."""

_lock = threading.Lock()
_forker: socket.socket | None = None


class ForkedProcess:
    """A program that was forked, in the words of :class:`subprocess.Popen`. It is no child of this process."""

    def __init__(
        self, module: str, words: Sequence[str], environment: Mapping[str, str], fds: Mapping[int, int]
    ) -> None:
        """Start ``module`` with ``words``; ``fds`` are its descriptors by the number that each has for it."""
        self.returncode: int | None = None
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "module": module,
            "words": words,
            "environment": dict(environment),
            "fds": list(fds),
            "limits": {number: resource.getrlimit(number) for number in _LIMITS},
            "umask": _umask(),
        }
        with theirs:
            _ask(json.dumps(request).encode(), [*fds.values(), theirs.fileno()])
        self.pid = int(self._status.recv(16))

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status (negative: the signal).

        Raises:
            subprocess.TimeoutExpired: the process runs for so many seconds more.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(int(self._status.recv(16)))
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process is known to be over."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)


def is_loaded(module: str) -> bool:
    """Return whether programs of ``module`` can be forked."""
    return f"{module}.__main__" in _PROGRAMS


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _ask(request: bytes, fds: Sequence[int]) -> None:
    global _forker
    with _lock:
        if _forker is None:
            _forker = _start_forker()
        socket.send_fds(_forker, [request], fds)


def _start_forker() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.harness.forked_processes", str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=_ROOT, pass_fds=[theirs.fileno()])

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


# -- the process that forks -------------------------------------------------------------------------------------------


class _Forker:
    """Forks programs as they are asked for."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._statuses: dict[int, socket.socket] = {}
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)

    def serve(self) -> tuple[bytes, list[int]] | None:
        """Fork until the requests end. Returns in each child, with what was asked for."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes)
        while True:
            ready, _, _ = select.select([self._requests.fileno(), self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._tell_ends()
            if self._requests.fileno() in ready:
                data, fds, _, _ = socket.recv_fds(self._requests, _REQUEST_BYTES_MOST, _FDS_MOST)
                if not data:
                    break
                *given, status = fds
                if not (pid := os.fork()):
                    self._be_child(status)
                    return data, given
                self._statuses[pid] = socket.socket(fileno=status)
                self._statuses[pid].send(str(pid).encode())
                for fd in given:
                    os.close(fd)
        for pid in self._statuses:
            os.kill(pid, signal.SIGKILL)
        return None

    def _tell_ends(self) -> None:
        while self._statuses:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._statuses.pop(pid) as status, contextlib.suppress(OSError):
                status.send(str(ended).encode())

    def _be_child(self, status: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for sock in (self._requests, *self._statuses.values()):
            sock.close()
        for fd in (self._woken, self._wakes, status):
            os.close(fd)


def _run(data: bytes, fds: Sequence[int]) -> None:
    request: dict[str, Any] = json.loads(data)
    _place(dict(zip(request["fds"], fds, strict=True)))
    os.umask(request["umask"])
    for limit, (soft, hard) in request["limits"].items():
        resource.setrlimit(int(limit), (soft, hard))
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["words"]]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    for program in _PROGRAMS:
        sys.modules.pop(program, None)  # it is about to be loaded as __main__
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _place(fds: Mapping[int, int]) -> None:
    # Out of the way first: a number that is wanted may be another's now.
    beyond = max([*fds, *fds.values()]) + 1
    apart = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, beyond) for number, fd in fds.items()}
    for number, fd in apart.items():
        os.dup2(fd, number)
    for number in set(range(beyond)) - set(fds):
        with contextlib.suppress(OSError):
            os.close(number)
    os.closerange(beyond, 1 << 16)


if __name__ == "__main__":
    for name in (*_PROGRAMS, *_LOADED_LATER):
        importlib.import_module(name)
    gc.collect()
    if asked := _Forker(socket.socket(fileno=int(sys.argv[1]))).serve():
        _run(*asked)
