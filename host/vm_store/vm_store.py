"""Where what the supervisor keeps of a virtual machine outlives the supervisor: with its service manager.

Each descriptor is stored before the record names it, and removed after the record has ceased to. So a supervisor may be
killed at any moment: what the record names is there. What it does not name is left over, and means nothing.
"""

import os
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Final

from host.service_manager.service_manager import ServiceManager
from host.vm_store.same_file import is_same_file
from host.vm_store.vm_record import PAGE, PLACE_AT, Place, VmRecord, build_head, parse_head, parse_record
from protocol.errors import BalloonError

REPLIES_MAX: Final = 1 << 20
"""Bytes of replies after which the file begins anew."""


class VmStore:
    """Keeps nothing: the machine's session ends with the supervisor."""

    keeps = False

    def add_connection(self, fd: int) -> None:
        """Keep the connection, last of all: with it the machine counts as kept."""

    def add_file(self, number: int, fd: int, files: Mapping[int, int]) -> None:
        """Keep file ``number`` of the session. ``files`` are all of them."""

    def remove_files(self, numbers: Iterable[int]) -> None:
        """Forget files, once the next record is written."""

    def write(self, record: VmRecord) -> None:
        """Have ``record`` count from now on."""

    @property
    def names(self) -> dict[int, str]:
        """The names under which files are kept, by number."""
        return {}

    @property
    def replies_end(self) -> int:
        """Where the queue of replies ends."""
        return 0

    def queue(self, reply: bytes) -> None:
        """Queue a reply, which counts once the next record is written."""

    @property
    def waiting(self) -> int:
        """Bytes of replies that have not been sent."""
        return 0

    def send(self, sock: socket.socket) -> None:
        """Send replies that wait, as far as there is room. What was sent is out of the queue in the same moment.

        Raises:
            OSError: nothing can be sent.
        """

    def sent_otherwise(self, size: int) -> None:
        """Take ``size`` bytes of replies out of the queue that were sent already."""

    def read_waiting(self) -> bytes:
        """Return the replies that wait."""
        return b""

    def close(self) -> None:
        """Forget the machine."""

    def let_go(self) -> None:
        """Close what is open here, and keep the rest."""


UNSTORED: Final = VmStore()


class KeptVm(VmStore):
    """Keeps machine ``number`` with ``manager``. ``record`` and ``replies`` are descriptors of memory files, owned
    here: the file position of ``replies`` is where what has been sent ends, and outlives this process with the file."""

    keeps = True

    def __init__(self, manager: ServiceManager, number: int, record: int, replies: int) -> None:
        self._manager = manager
        self._number = number
        self._record = record
        self._replies = replies
        self._place = Place()
        self._end = 0
        self._names: dict[int, str] = {}
        self._removed: list[str] = []

    @classmethod
    def begin(cls, manager: ServiceManager, number: int) -> "KeptVm":
        """Keep a new machine, whose record and connection come next. Raises OSError if there is no descriptor."""
        record = os.memfd_create("balloon record", os.MFD_CLOEXEC)
        try:
            replies = os.memfd_create("balloon replies", os.MFD_CLOEXEC)
        except OSError:
            os.close(record)
            raise
        kept = cls(manager, number, record, replies)
        manager.store(name_of(number, "replies"), kept._replies)
        return kept

    def read(self) -> VmRecord:
        """Return the record that counts. Raises :class:`BalloonError` if it cannot be read."""
        self._place = parse_head(os.pread(self._record, PAGE, 0))
        record = parse_record(os.pread(self._record, self._place.size, self._place.page * PAGE))
        if record.number != self._number:
            raise BalloonError(f"what is kept of it is that of vm {record.number}")
        self._names = dict(record.names)
        size, sent = os.fstat(self._replies).st_size, os.lseek(self._replies, 0, os.SEEK_CUR)
        self._end = record.replies_end
        if size < max(self._end, sent):  # it was about to begin anew
            self._begin_replies()
        else:
            os.ftruncate(self._replies, self._end)  # a reply that was queued and does not count yet comes again
        return record

    def add_connection(self, fd: int) -> None:
        """Keep the connection, last of all: with it the machine counts as kept."""
        self._manager.store(name_of(self._number, "connection"), fd)

    def add_file(self, number: int, fd: int, files: Mapping[int, int]) -> None:
        """Keep file ``number`` of the session. ``files`` are all of them."""
        for other, name in self._names.items():
            if other in files and is_same_file(fd, files[other]):
                self._names[number] = name
                return
        name = self._names[number] = name_of(self._number, f"file{number}")
        self._manager.store(name, fd)

    def remove_files(self, numbers: Iterable[int]) -> None:
        """Forget files, once the next record is written."""
        names = {self._names.pop(number) for number in numbers if number in self._names}
        self._removed += names - set(self._names.values())

    def write(self, record: VmRecord) -> None:
        """Have ``record`` count from now on."""
        if self._end > REPLIES_MAX and not self.waiting:
            self._begin_replies()
        body = record.build()
        is_new = not self._place.size
        self._place = self._place.beside(len(body))
        _write(self._record, body, self._place.page * PAGE)
        if is_new:
            os.pwrite(self._record, build_head() + self._place.build(), 0)
            self._manager.store(name_of(self._number, "record"), self._record)
        else:
            os.pwrite(self._record, self._place.build(), PLACE_AT)
        for name in self._removed:
            self._manager.remove(name)
        self._removed.clear()

    @property
    def names(self) -> dict[int, str]:
        """The names under which files are kept, by number."""
        return self._names

    @property
    def replies_end(self) -> int:
        """Where the queue of replies ends."""
        return self._end

    def queue(self, reply: bytes) -> None:
        """Queue a reply, which counts once the next record is written."""
        _write(self._replies, reply, self._end)
        self._end += len(reply)

    @property
    def waiting(self) -> int:
        """Bytes of replies that have not been sent."""
        return self._end - os.lseek(self._replies, 0, os.SEEK_CUR)

    def send(self, sock: socket.socket) -> None:
        """Send replies that wait, as far as there is room. What was sent is out of the queue in the same moment.

        Raises:
            OSError: nothing can be sent.
        """
        # One system call that sends and moves the position of the file (fs/read_write.c, do_sendfile()): a supervisor
        # that is killed has done both or neither.
        os.sendfile(sock.fileno(), self._replies, None, self.waiting)

    def sent_otherwise(self, size: int) -> None:
        """Take ``size`` bytes of replies out of the queue that were sent already."""
        os.lseek(self._replies, size, os.SEEK_CUR)

    def read_waiting(self) -> bytes:
        """Return the replies that wait."""
        return os.pread(self._replies, self.waiting, os.lseek(self._replies, 0, os.SEEK_CUR))

    def _begin_replies(self) -> None:
        os.ftruncate(self._replies, 0)
        os.lseek(self._replies, 0, os.SEEK_SET)
        self._end = 0

    def close(self) -> None:
        """Forget the machine."""
        # The connection first: without it the rest is left over.
        for what in ("connection", "record", "replies"):
            self._manager.remove(name_of(self._number, what))
        for name in (*set(self._names.values()), *self._removed):
            self._manager.remove(name)
        self.let_go()

    def let_go(self) -> None:
        """Close what is open here, and keep the rest."""
        os.close(self._record)
        os.close(self._replies)


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def name_of(number: int, what: str) -> str:
    """Return the name under which ``what`` of machine ``number`` is kept."""
    return f"vm{number}.{what}"


_NAME: Final = re.compile("vm([1-9][0-9]{0,9})[.](connection|record|replies|file[0-9]{1,9})")


def number_in(name: str) -> int | None:
    """Return the number of the machine whose part is kept under this name, None if it is no such name."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])
