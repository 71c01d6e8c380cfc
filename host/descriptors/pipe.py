"""A received pipe, read and written without waiting and without changing its flags, which its owner shares.

Linux 6.4 and later let one call on a pipe ask not to wait (RWF_NOWAIT). Before, such a call fails with EOPNOTSUPP.
Opening the pipe once more, through procfs, gives flags of our own, O_NONBLOCK among them.
"""

import errno
import os


class Pipe:
    """One end of a pipe, which it owns."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._own: int | None = None

    def read(self, length: int) -> bytes:
        """Return up to ``length`` bytes, none at the end of the stream.

        Raises:
            BlockingIOError: nothing is there yet.
            OSError: it cannot be read.
        """
        if self._own is None:
            data = bytearray(length)
            try:
                return bytes(data[: os.preadv(self.fd, [data], -1, os.RWF_NOWAIT)])
            except OSError as error:
                self._reopen(os.O_RDONLY, error)
        assert self._own is not None
        return os.read(self._own, length)

    def write(self, data: bytes) -> int:
        """Write ``data``, or a part of it if it is long. Return how many bytes were written.

        Raises:
            BlockingIOError: there is no room.
            OSError: it cannot be written.
        """
        if self._own is None:
            try:
                return os.pwritev(self.fd, [data], -1, os.RWF_NOWAIT)
            except OSError as error:
                self._reopen(os.O_WRONLY, error)
        assert self._own is not None
        return os.write(self._own, data)

    def _reopen(self, access: int, error: OSError) -> None:
        if error.errno != errno.EOPNOTSUPP:
            raise error
        try:
            self._own = os.open(f"/proc/self/fd/{self.fd}", access | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as failure:
            if failure.errno == errno.ENXIO:  # nothing reads it
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from failure
            raise

    def close(self) -> None:
        """Close it."""
        if self._own is not None:
            os.close(self._own)
        os.close(self.fd)
