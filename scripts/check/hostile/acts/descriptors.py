"""Descriptors that a message must not bring, or may: one of each kind."""

import contextlib
import fcntl
import os
import select
import socket
from collections.abc import Callable
from typing import Final

from scripts.check.hostile.acts.attack import Attack

_SMALL: Final = 4096


def descriptor(attack: Attack) -> int:
    """Return a descriptor of a random kind, which is closed with the session."""
    return attack.random.choice(_KINDS)(attack)


def _eventfd(attack: Attack) -> int:
    return attack.keep_fd(os.eventfd(attack.random.choice((0, 1, 1 << 31)), os.EFD_NONBLOCK))


def _blocking_eventfd(attack: Attack) -> int:
    return attack.keep_fd(os.eventfd(0))


def _full_eventfd(attack: Attack) -> int:
    # A signal to it blocks.
    fd = attack.keep_fd(os.eventfd(0))
    os.eventfd_write(fd, (1 << 64) - 2)
    return fd


def _semaphore(attack: Attack) -> int:
    return attack.keep_fd(os.eventfd(1 << 31, os.EFD_SEMAPHORE))


def _pipe(attack: Attack) -> int:
    return attack.random.choice([attack.keep_fd(fd) for fd in os.pipe()])


def _full_pipe(attack: Attack) -> int:
    _, writing = (attack.keep_fd(fd) for fd in os.pipe())
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _SMALL)
    os.write(writing, bytes(_SMALL))
    return writing


def _stream(attack: Attack) -> int:
    return _socket(attack, socket.SOCK_STREAM)


def _datagram(attack: Attack) -> int:
    return _socket(attack, socket.SOCK_DGRAM)


def _socket(attack: Attack, kind: socket.SocketKind) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    attack.keep(ours.close)
    attack.keep(theirs.close)
    if attack.random.random() < 0.3:
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # full
            while theirs.send(bytes(_SMALL)):
                pass
    return theirs.fileno()


def _own_connection(attack: Attack) -> int:
    return attack.socket.fileno()


def _zero(attack: Attack) -> int:
    return attack.keep_fd(os.open(attack.random.choice(("/dev/zero", "/dev/null", "/dev/full")), os.O_RDWR))


def _directory(attack: Attack) -> int:
    return attack.keep_fd(os.open("/", os.O_RDONLY | os.O_DIRECTORY))


def _path(attack: Attack) -> int:
    return attack.keep_fd(os.open("/proc/self/status", attack.random.choice((os.O_RDONLY, os.O_PATH))))


def _epoll(attack: Attack) -> int:
    epoll = select.epoll()
    attack.keep(epoll.close)
    return epoll.fileno()


def _process(attack: Attack) -> int:
    return attack.keep_fd(os.pidfd_open(os.getpid()))


def memory_file(attack: Attack) -> int:
    """Return a memfd of a random size, with random seals or none, for writing or only for reading."""
    random = attack.random
    fd = attack.keep_fd(os.memfd_create("hostile", os.MFD_ALLOW_SEALING))
    os.ftruncate(fd, random.choice((0, 1, _SMALL, _SMALL + 1, 1 << 20, 64 << 20, 1 << 40)))
    seals = random.choice((0, 0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_WRITE))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    if random.random() < 0.2:
        return attack.keep_fd(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
    return fd


_KINDS: Final[tuple[Callable[[Attack], int], ...]] = (
    _eventfd,
    _blocking_eventfd,
    _full_eventfd,
    _semaphore,
    _pipe,
    _full_pipe,
    _stream,
    _datagram,
    _own_connection,
    _zero,
    _directory,
    _path,
    _epoll,
    _process,
    memory_file,
    memory_file,
)
