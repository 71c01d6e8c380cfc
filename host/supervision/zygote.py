"""The process from which workers are forked: everything is imported in it, and it has one thread.

A fork takes a few milliseconds and shares the memory of what was imported. The workers become children of the
supervisor: they are forked by a process in between, which ends at once, and the supervisor adopts what is left behind.
"""

import array
import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

from host.supervision.packets import with_number
from host.supervision.process_title import adopt_orphans, die_with_parent, set_title

_VARIABLE: Final = "VHOST_USER_BALLOON_ZYGOTE"
"""Environment variable that has the program become a zygote, with this descriptor as its way to the supervisor."""

_NUMBER_BYTES: Final = len(with_number(0, b""))
_FD_ROOM: Final = socket.CMSG_SPACE(array.array("i").itemsize)


class Zygote:
    """The supervisor's end of the way to the zygote, which is a child of this process with the number ``pid``."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._socket = sock
        self.pid = pid

    def fork(self, number: int, end: socket.socket) -> bool:
        """Have worker ``number`` forked, with ``end`` as its end of the way to the supervisor. The caller closes its
        own. Return False if the zygote has gone."""
        try:
            socket.send_fds(self._socket, [with_number(number, b"")], [end.fileno()])
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End the zygote."""
        self._socket.close()

    def kill(self) -> None:
        """Kill it. The next one is started when the next worker is."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take note that it has ended."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def start_zygote(prepare: Callable[[], Callable[[int, socket.socket], None]]) -> Zygote:
    """Fork the zygote. This process must have one thread. ``prepare`` is called in the zygote, imports what workers
    need, and returns what runs in a worker, with its number and its end of the way to the supervisor."""
    if (fd := os.environ.pop(_VARIABLE, None)) is not None:
        _be_zygote(socket.socket(fileno=int(fd)), prepare)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    adopt_orphans()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _be_zygote(theirs, prepare)
    theirs.close()
    return Zygote(ours, pid)


def restart_zygote() -> Zygote:
    """Return a new zygote in place of one that has ended. This process may have threads by now, so its program is
    started anew, and becomes a zygote in :func:`start_zygote`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.set_inheritable(True)
        environment = {**os.environ, _VARIABLE: str(theirs.fileno())}
        pid = os.posix_spawn(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    return Zygote(ours, pid)


def _be_zygote(sock: socket.socket, prepare: Callable[[], Callable[[int, socket.socket], None]]) -> NoReturn:
    status = 1
    supervisor = os.getppid()
    try:
        die_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _close_all_but(sock.fileno())
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all processes; the supervisor tells
        run_worker = prepare()
        set_title("vub zygote", "vhost-user-balloon: zygote")
        gc.collect()
        gc.freeze()
        while (received := _receive(sock)) is not None:
            _fork_worker(sock, supervisor, run_worker, *received)
        status = 0
    finally:
        os._exit(status)


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _receive(sock: socket.socket) -> tuple[int, socket.socket] | None:
    data, ancillary, _, _ = sock.recvmsg(_NUMBER_BYTES, _FD_ROOM, socket.MSG_CMSG_CLOEXEC)
    if not data or not ancillary:
        return None
    fds = array.array("i", ancillary[0][2])
    return int.from_bytes(data, "little"), socket.socket(fileno=fds[0])


def _fork_worker(
    sock: socket.socket,
    supervisor: int,
    run_worker: Callable[[int, socket.socket], None],
    number: int,
    end: socket.socket,
) -> None:
    try:
        between = os.fork()
    except OSError:  # the limit of processes: the supervisor finds the way closed
        end.close()
        return
    if between:
        end.close()
        os.waitpid(between, 0)
        return
    parent = os.getpid()
    if os.fork():
        os._exit(0)
    sock.close()
    while os.getppid() == parent:
        time.sleep(0.0002)
    status = 1
    try:
        die_with_parent(signal.SIGKILL)
        if os.getppid() != supervisor:  # it has ended before: another one may serve the same machines by now
            os._exit(1)
        run_worker(number, end)
        status = 0
    finally:
        os._exit(status)
