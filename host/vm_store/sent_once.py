"""Whether a descriptor was sent to a front-end by an earlier process, which was killed before it could write that down.

A descriptor is sent as an open file of its own that is locked. The lock is the open file's, and lasts until the last
descriptor of that is closed: with the process if it was not sent, with the front-end's if it was (flock(2)).
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator


class SentAlready(Exception):
    """An earlier process has sent the descriptors."""


@contextlib.contextmanager
def sent_once(fds: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Have descriptors to send in place of ``fds`` in a block, after which they are closed here. Those that are no
    files, or cannot be opened again, are the same.

    Raises:
        SentAlready: they were sent.
    """
    with contextlib.ExitStack() as opened:
        yield tuple(_locked(fd, opened) for fd in fds)


def _locked(fd: int, opened: contextlib.ExitStack) -> int:
    try:
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return fd
    opened.callback(os.close, again)
    try:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SentAlready from None
    except OSError:
        return fd
    return again
