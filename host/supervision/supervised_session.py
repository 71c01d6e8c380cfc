"""The journal of a worker's session: all that another worker needs to go on is with the supervisor before it counts."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from host.supervision.journal import Journal, parse_journal
from host.supervision.link import Link
from host.supervision.packets import Kind, Legacy, Packet, Piece, with_kept, with_length, with_number
from host.supervision.session_journal import SessionJournal
from host.vhost_user.actions import SetLog
from host.vhost_user.backend import Reply
from protocol.errors import SessionEnded

CHANGE_INTERVAL: Final = 0.2
"""Seconds after which a change without a message is passed on, with all that have come meanwhile."""


class SupervisedSession(SessionJournal):
    """Journals the session of virtual machine ``vm`` over ``link``. ``legacy`` is what another worker has left of it,
    ``files`` are that one's files by their numbers, which are owned here until :meth:`legacy`."""

    is_kept = True

    def __init__(
        self,
        vm: int,
        link: Link,
        legacy: Legacy | None,
        files: Mapping[int, int],
        *,
        shared: bool = False,
        tell_events: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin. ``shared`` says that the worker has other machines too, or may get some. ``tell_events`` has the
        supervisor told what events there are: of a machine that the worker does not have any more they do not count."""
        self._vm = vm
        self._tell_events = tell_events
        self._shared = shared
        self._moves = self._left = False
        self._link = link
        self._legacy = legacy
        self._files = dict(files)
        self._numbers: dict[int, int] = {}
        self._next = 0 if legacy is None else legacy.next_file
        self._records: dict[int, int] = {}
        self._log: tuple[SetLog, int] | None = None
        self._build: Callable[[], tuple[bytes, set[int]]] | None = None
        self._last = b""
        self._settled = asyncio.Event()
        self._settled.set()
        self._sent: asyncio.Future[str] | None = None
        self._later: asyncio.TimerHandle | None = None

    @property
    def goes_on(self) -> bool:
        """Whether another worker has begun the session."""
        return self._legacy is not None

    def legacy(self) -> tuple[Journal, Mapping[int, int], dict[int, int]] | None:
        """Return what another worker has left: its journal, its files by number, the records by queue."""
        if self._legacy is None:
            return None
        journal = parse_journal(self._legacy.journal)
        self._numbers = {fd: number for number, fd in self._files.items()}
        records = {**journal.records, **self._legacy.records}
        return journal, self._files, {queue: self._files[number] for queue, number in records.items()}

    def left(self) -> tuple[Sequence[Piece], bool]:
        """Return the pieces of the message that another worker had in hand, and whether the last of them was taken from
        the connection."""
        if self._legacy is None:
            return (), True
        return self._legacy.pieces, self._legacy.taken

    def begin(self, journal: Callable[[], tuple[bytes, set[int]]]) -> None:
        """The session begins; ``journal`` builds its journal as it is now, and says which files that names."""
        self._build = journal

    async def came(self, data: bytes, fds: Iterable[int], unfit: str) -> None:
        """Pass on bytes that were seen, with the descriptors that are fit to be taken."""
        fds = tuple(fds)
        for fd in fds:
            self._give_number(fd)
        self._link.send(Packet(Kind.PIECE, self._vm, with_length(unfit.encode(), data), fds))
        await self._link.flushed()

    def taken(self) -> None:
        """The bytes were taken from the connection."""
        self._link.send(Packet(Kind.TAKEN, self._vm))

    def begins(self) -> None:
        """A message has come whole, and is about to be carried out: the session is between two journals."""
        self._settled.clear()

    async def handled(self, reply: Reply | None) -> bool:
        """Pass on the journal as it is now, and have the reply sent.

        Raises:
            SessionEnded: the front-end has gone or does not read.
        """
        self._settled.set()
        data = b"" if reply is None else reply.data
        fds = () if reply is None else reply.fds
        self._link.send(Packet(Kind.HANDLED, self._vm, with_kept(*self._changed_journal(), data), fds))
        if reply is not None:
            for fd in fds:
                os.close(fd)
            self._sent = asyncio.get_running_loop().create_future()
            if problem := await self._sent:
                raise SessionEnded(problem)
        return True

    def sent(self, problem: str) -> None:
        """Take note that the supervisor has sent the reply, or why not."""
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(problem)

    def changed(self) -> None:
        """Have the journal passed on soon."""
        if self._later is None and self._build is not None:
            self._later = asyncio.get_running_loop().call_later(CHANGE_INTERVAL, self._tell_change)

    def went_on(self) -> None:
        """Have the supervisor know at once that the session has been taken over."""
        # A message in hand is not whole yet, or would have been carried out by now.
        journal, kept = self._changed_journal()
        self._link.send(Packet(Kind.JOURNAL, self._vm, with_kept(journal, kept)))

    def flush(self) -> None:
        """Pass on a change that waits, now."""
        if self._later is not None:
            self._later.cancel()
            self._tell_change()

    async def kept(self) -> None:
        """Return when the supervisor has been sent the session as it is now, or a later one."""
        await self._settled.wait()
        if self._later is not None:
            self._later.cancel()
        self._tell_change()

    def _tell_change(self) -> None:
        self._later = None
        if self._settled.is_set() and self._build is not None:  # else the end of the message in hand tells it
            journal, kept = self._changed_journal()
            if journal:
                self._link.send(Packet(Kind.JOURNAL, self._vm, with_kept(journal, kept)))

    def _changed_journal(self) -> tuple[bytes, set[int]]:
        assert self._build is not None
        journal, kept = self._build()
        if journal == self._last:
            return b"", kept
        self._last = journal
        return journal, kept

    def record(self, queue: int, fd: int) -> None:
        """A ring is about to run, and notes its chains in flight in the file ``fd``."""
        self._records[queue] = self._give_number(fd)
        self._link.send(Packet(Kind.RECORD, self._vm, with_number(queue, b""), (fd,)))

    def _give_number(self, fd: int) -> int:
        number = self._numbers[fd] = self._next
        self._next += 1
        return number

    def number_of(self, fd: int) -> int:
        """Return the number of a file that has come."""
        return self._numbers[fd]

    def number_of_log(self, told: SetLog) -> int:
        """Return the number of the dirty log's file, which is mapped and not open any more."""
        if self._log is None or self._log[0] is not told:
            self._log = told, self._numbers[told.fd]  # now: the descriptor's number is another file's later
        return self._log[1]

    def records_of(self, running: Iterable[int]) -> dict[int, int]:
        """Return the numbers of the files that note the chains in flight of the rings that run."""
        return {queue: self._records[queue] for queue in running if queue in self._records}

    def may_stay(self, *, sealed: bool) -> bool:
        """Return whether this worker goes on with the session. Memory that can be cut short is served by a worker that
        has no other machine: a ring in it may cost the worker its life (SIGBUS)."""
        self._moves = self._shared and not sealed
        return not self._moves

    async def leave(self, stop: Iterable[Callable[[], Awaitable[object]]]) -> None:
        """The session ends here. If another worker goes on with it, ``stop`` its rings and pass it on as it is then."""
        if self._moves:
            for each in stop:
                await each()  # what is in hand is given back, or is put back and taken again
            self.went_on()
            self._left = True
        self.close()

    @property
    def is_left(self) -> bool:
        """Whether another worker goes on with the session."""
        return self._left

    def left_here(self) -> None:
        """All of a session that is left to another worker was released."""
        self._tell_events()
        self._link.send(Packet(Kind.LEFT, self._vm))

    def ended(self, reason: str) -> None:
        """The end of the session was told."""
        self._tell_events()
        self._link.send(Packet(Kind.ENDED, self._vm, reason.encode()))

    def close(self) -> None:
        """The session ends: from now on its files are closed, and it is not written down again."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._build = None
        self._settled.set()
