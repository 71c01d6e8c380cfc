"""What a session journals while it runs. Here nothing is kept of it: the session of a daemon of one process.

:mod:`host.supervision.supervised_session` has the session of a worker.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from host.supervision.journal import Journal
from host.supervision.packets import Piece
from host.vhost_user.actions import SetLog
from host.vhost_user.backend import Reply


class SessionJournal:
    """The journal of a session that dies with its process."""

    is_kept = False
    """Whether bytes have to be left on the connection until :meth:`came` has returned."""

    @property
    def goes_on(self) -> bool:
        """Whether another worker has begun the session."""
        return False

    def legacy(self) -> tuple[Journal, Mapping[int, int], dict[int, int]] | None:
        """Return the journal that another worker has left of this session, its files by number, and those that note
        chains in flight by queue; None for a new session. The files are the session's from now on."""
        return None

    def left(self) -> tuple[Sequence[Piece], bool]:
        """Return the pieces of the message that another worker had in hand, and whether the last of them was taken from
        the connection."""
        return (), True

    def begin(self, journal: Callable[[], tuple[bytes, set[int]]]) -> None:
        """The session begins; ``journal`` builds its journal as it is now, and says which files that names."""

    async def came(self, data: bytes, fds: Iterable[int], unfit: str) -> None:
        """Bytes have come, with descriptors that are fit to be taken. ``unfit`` says why others are not."""

    def taken(self) -> None:
        """The bytes were taken from the connection."""

    def begins(self) -> None:
        """A message has come whole, and is about to be carried out."""

    async def handled(self, reply: Reply | None) -> bool:
        """A message was carried out. Return whether the reply, if there is one, was sent.

        Raises:
            SessionEnded: the front-end has gone or does not read.
        """
        return False

    def changed(self) -> None:
        """The session has changed, perhaps without a message."""

    def went_on(self) -> None:
        """The session has been taken over from another worker."""

    def record(self, queue: int, fd: int) -> None:
        """A ring is about to run, and notes its chains in flight in the file ``fd``."""

    def number_of(self, fd: int) -> int:
        """Return the number of a file that has come."""
        return fd

    def number_of_log(self, told: SetLog) -> int:
        """Return the number of the dirty log's file, which is mapped and not open any more."""
        return told.fd

    def records_of(self, running: Iterable[int]) -> dict[int, int]:
        """Return the numbers of the files that note the chains in flight of the rings that run."""
        return {}

    def may_stay(self, *, sealed: bool) -> bool:
        """Return whether this process goes on with the session. ``sealed`` says that its memory cannot be cut short."""
        return True

    async def leave(self, stop: Iterable[Callable[[], Awaitable[object]]]) -> None:
        """The session ends here: :meth:`close`. If another process goes on with it, ``stop`` its rings before."""
        self.close()

    @property
    def is_left(self) -> bool:
        """Whether another process goes on with the session."""
        return False

    def left_here(self) -> None:
        """All of a session that is left to another process was released."""

    def close(self) -> None:
        """The session ends: from now on its files are closed, and it is not written down again."""

    def ended(self, reason: str) -> None:
        """The end of the session was told."""


NOT_JOURNALED = SessionJournal()
