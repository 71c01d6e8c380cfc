"""The file of inflight tracking: made here, kept by the front-end, handed back after a crash.

It is read and written with ``pread`` and ``pwrite``, never mapped: a front-end may hand back any file, and one that is
cut short then stops a queue of its own virtual machine instead of the daemon.
"""

import fcntl
import os

from host.descriptors.received_file import check_regular
from host.inflight.inflight import check_description, region_bytes
from protocol.errors import VhostUserError, VirtqueueError
from protocol.vhost_user_payloads import InflightDescription


def make_inflight_file(size: int) -> int:
    """Return a descriptor of a new memory file of ``size`` zero bytes, sealed against changes of its size."""
    fd = os.memfd_create("vhost-user-balloon-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


class InflightFile:
    """The inflight file of one virtual machine. It owns ``fd`` once it has been made."""

    def __init__(self, fd: int, told: InflightDescription, *, packed: bool) -> None:
        """Take the file.

        Raises:
            VhostUserError: it is not a regular file, not open for reading and writing, or too short.
        """
        check_description(told, packed=packed)
        status = check_regular(fd, "the inflight file", writable=True)
        if told.mmap_offset + told.mmap_size > status.st_size:
            raise VhostUserError(
                f"an inflight file of {told.mmap_size} bytes at {told.mmap_offset} exceeds its {status.st_size} bytes"
            )
        self._fd = fd
        self._told = told

    @property
    def fd(self) -> int:
        """Its descriptor."""
        return self._fd

    @property
    def told(self) -> InflightDescription:
        """Its description."""
        return self._told

    @property
    def entries(self) -> int:
        """Descriptors that each queue's region has room for."""
        return self._told.queue_size

    def region(self, index: int, *, packed: bool) -> "FileRegion":
        """Return the bytes of queue ``index``.

        Raises:
            VhostUserError: the file has no room for it; the format may have changed since the file was announced.
        """
        size = region_bytes(self._told.queue_size, packed=packed)
        if index >= self._told.num_queues or (index + 1) * size > self._told.mmap_size:
            raise VhostUserError(f"the inflight file has no room for queue {index}")
        return FileRegion(self._fd, self._told.mmap_offset + index * size, size)

    def close(self) -> None:
        """Close the file. No queue may be using a region of it."""
        os.close(self._fd)


class FileRegion:
    """``size`` bytes of a file from ``start`` on.

    Between :meth:`load` and the next :meth:`flush` they are read and written in memory alone: a queue is opened on the
    event loop, and the front-end may hold the file's lock. Afterwards the queue's worker reads and writes the file
    itself.
    """

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self._start = start
        self._size = size
        self._loaded: bytearray | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def load(self) -> None:
        """Read all of it. The front-end may block this. Raises like :meth:`read`."""
        self._loaded = bytearray(self.read(0, self._size))

    def flush(self) -> None:
        """Write to the file what was written since :meth:`load`. Raises like :meth:`write`."""
        if self._loaded is None:
            return
        self._loaded = None
        unwritten, self._unwritten = self._unwritten, []
        for offset, data in unwritten:
            self.write(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes at ``offset``. Raises :class:`VirtqueueError` where the file ends before them."""
        if self._loaded is not None:
            return bytes(self._loaded[offset : offset + length])
        try:
            data = os.pread(self._fd, length, self._start + offset)
        except OSError as error:
            raise VirtqueueError(f"the inflight file cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise VirtqueueError("the inflight file was cut short")
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Store ``data`` at ``offset``. Raises :class:`VirtqueueError` where the file does not take it."""
        if self._loaded is not None:
            self._loaded[offset : offset + len(data)] = data
            self._unwritten.append((offset, bytes(data)))
            return
        try:
            written = os.pwrite(self._fd, data, self._start + offset)
        except OSError as error:
            raise VirtqueueError(f"the inflight file cannot be written: {error.strerror}") from error
        if written != len(data):
            raise VirtqueueError("the inflight file did not take all that was written")
