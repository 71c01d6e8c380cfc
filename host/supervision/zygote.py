"""The process from which workers are forked: everything is imported in it, and it has one thread.

A fork takes a few milliseconds and shares the memory of what was imported. The workers become children of the
supervisor: they are forked by a process in between, which ends at once, and the supervisor adopts what is left behind.

A spare process is forked ahead, confined, and waits to become the next worker: a guest whose worker has died waits for
its chain meanwhile.
"""

import array
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn, TypeAlias

from host.supervision.packets import with_number
from host.supervision.process_title import adopt_orphans, die_with_parent, set_title

_VARIABLE: Final = "VHOST_USER_BALLOON_ZYGOTE"
"""Environment variable that has the program become a zygote, with this descriptor as its way to the supervisor."""

_NUMBER_BYTES: Final = len(with_number(0, b""))
_QUIET_MS: Final = 100
"""Milliseconds after a fork until a spare process is made: the worker that was forked has the processor first."""

Run: TypeAlias = Callable[[int, socket.socket], None]
"""What runs in a worker, with its number and its end of the way to the supervisor."""

Confine: TypeAlias = Callable[[], Run]
"""What a process does before it is known which worker it becomes."""

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
        """Kill it. Those that it was to fork are as workers that have ended; the next worker starts the next one."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take note that it has ended."""
        if self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)


def start_zygote(prepare: Callable[[], Confine]) -> Zygote:
    """Fork the zygote. This process must have one thread. ``prepare`` is called in the zygote, imports what workers
    need, and returns what each of them calls."""
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
    """Return a new zygote in place of one that has ended, or one that has ended too if there is no room for a process.
    This process may have threads by now, so its program is started anew, and becomes a zygote in
    :func:`start_zygote`. Raises :class:`OSError` if there are no descriptors."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        theirs.set_inheritable(True)
        environment = {**os.environ, _VARIABLE: str(theirs.fileno())}
        try:
            pid = os.posix_spawn(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
        except OSError:  # as one that has ended
            pid = 0
    return Zygote(ours, pid)


def _be_zygote(sock: socket.socket, prepare: Callable[[], Confine]) -> NoReturn:
    status = 1
    supervisor = os.getppid()
    try:
        die_with_parent(signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _close_all_but(sock.fileno())
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all processes; the supervisor tells
        confine = prepare()
        set_title("vub zygote", "vhost-user-balloon: zygote")
        gc.collect()
        gc.freeze()
        gc.enable()
        _fork_workers(sock, supervisor, confine)
        status = 0
    finally:
        os._exit(status)


def _fork_workers(sock: socket.socket, supervisor: int, confine: Confine) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while True:
        spare = None if poll.poll(_QUIET_MS) else _fork_spare(sock, supervisor, confine)
        if (received := _receive(sock)) is None:
            return
        with received[1]:
            if spare is None or not _hand_over(spare, *received):
                with contextlib.suppress(OSError):  # the limit of processes: the supervisor finds the way closed
                    _fork(sock, supervisor, lambda received=received: confine()(*received))  # type: ignore[misc]


def _fork_spare(sock: socket.socket, supervisor: int, confine: Confine) -> socket.socket | None:
    # Returns the way to it, None if there is no room for it now.
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        return None

    def wait() -> None:
        ours.close()
        set_title("vub spare", "vhost-user-balloon: spare")
        run = confine()
        if (received := _receive(theirs)) is not None:
            theirs.close()
            run(*received)

    with theirs:
        try:
            _fork(sock, supervisor, wait)
        except OSError:
            ours.close()
            return None
    return ours


def _hand_over(spare: socket.socket, number: int, end: socket.socket) -> bool:
    # False if the spare process has been killed.
    with spare:
        try:
            socket.send_fds(spare, [with_number(number, b"")], [end.fileno()])
        except OSError:
            return False
    return True


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _receive(sock: socket.socket) -> tuple[int, socket.socket] | None:
    data, ancillary, _, _ = sock.recvmsg(_NUMBER_BYTES, _FD_ROOM, socket.MSG_CMSG_CLOEXEC)
    if not data or not ancillary:
        return None
    fds = array.array("i", ancillary[0][2])
    return int.from_bytes(data, "little"), socket.socket(fileno=fds[0])


def _fork(sock: socket.socket, supervisor: int, run: Callable[[], None]) -> None:
    # Has ``run`` run in a child of the supervisor.
    between = os.fork()
    if between:
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
        run()
        status = 0
    finally:
        os._exit(status)
