"""What a session tells of itself while it runs. Here it goes nowhere: nothing is made of it and nothing is wrapped.

:mod:`host.recording.recorded_session` has the session that is recorded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from host.memory.guest_memory import GuestMemory
from host.ring.kick_file import KickFile
from host.ring.opened_ring import OpenedRing, OpenQueue, open_ring
from host.ring.queue_files import CallFile
from host.vhost_user.actions import StartRing
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel


class SessionRecording:
    """The session of a daemon that does not record."""

    def begin(self, pid: int) -> None:
        """A front-end, process ``pid``, has connected."""

    def resume(self) -> None:
        """Another process has served the session so far."""

    def end(self, reason: str) -> None:
        """The session is over."""

    def passed(self, stream: Channel, data: bytes, fds: Sequence[int] = (), refused: int = 0) -> None:
        """``data`` has come or gone on ``stream``, with ``fds`` and ``refused`` more descriptors that were not
        taken."""

    def remark(self, event: str, fields: Mapping[str, object]) -> None:
        """The session was found to be like this."""

    def open_ring(self, action: StartRing, memory: GuestMemory, open_queue: OpenQueue) -> OpenedRing:
        """Map and open the ring of ``action``, see :func:`host.ring.opened_ring.open_ring`.

        Raises:
            VhostUserError: as that function does.
        """
        return open_ring(action, memory, open_queue)

    def ring_stopped(self, index: int, base: int) -> None:
        """A ring is no longer served, and would go on at ``base``."""

    def ring_broke(self, index: int, reason: str) -> None:
        """A ring is broken."""

    def signal_file(
        self, request: FrontendRequest, index: int, fd: int | None, close: Callable[[Iterable[int]], None]
    ) -> KickFile | CallFile | None:
        """Return ``fd`` as the descriptor of queue ``index`` that ``request`` sets, None for None.

        Raises:
            VhostUserError: it cannot be one; the caller still owns it.
        """
        if fd is None:
            return None
        return KickFile(fd, close) if request is FrontendRequest.SET_VRING_KICK else CallFile(fd)


NOT_RECORDED = SessionRecording()
