"""One session that is recorded."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from host.memory.guest_memory import GuestMemory
from host.recording.file_facts import REFUSED, describe_file
from host.recording.recorded_virtqueue import RecordedVirtqueue, RingRecorder
from host.recording.session_recording import SessionRecording
from host.recording.signal_files import RecordedCallFile, RecordedKickFile
from host.ring.kick_file import KickFile
from host.ring.opened_ring import OpenedRing, OpenQueue, open_ring
from host.ring.queue_files import CallFile
from host.vhost_user.actions import StartRing
from host.virtqueue.virtqueue import DeviceVirtqueue, ReadGuest
from protocol.memory import FileRange
from protocol.recording.records import (
    BACK_END,
    CALL,
    ERR,
    KICK,
    TAKEN_OVER,
    Record,
    Remark,
    RingBroken,
    RingStart,
    RingStop,
    SessionBegin,
    SessionEnd,
    Signal,
)
from protocol.recording.stream import RecordedStream
from protocol.ring_formats import Ring
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel


class RecordedSession(SessionRecording):
    """Session number ``session``, whose records go to ``write``. Any thread may call a method for a ring or signal that
    it serves; a stream has one thread at a time."""

    def __init__(self, session: int, write: Callable[[Record], None]) -> None:
        self._session = session
        self._write = write
        self._streams = {stream: RecordedStream(session, stream) for stream in Channel}
        self._rings: dict[int, RecordedVirtqueue] = {}

    def begin(self, pid: int) -> None:
        """A front-end, process ``pid``, has connected."""
        self._write(SessionBegin(t=time.monotonic(), session=self._session, pid=pid, side=BACK_END))

    def resume(self) -> None:
        """Record that another process has served the session so far."""
        self.remark(TAKEN_OVER, {})

    def end(self, reason: str) -> None:
        """The session is over."""
        now = time.monotonic()
        for stream in self._streams.values():
            for noise in stream.flush(now):
                self._write(noise)
        self._write(SessionEnd(t=now, session=self._session, reason=reason))

    def passed(self, stream: Channel, data: bytes, fds: Sequence[int] = (), refused: int = 0) -> None:
        """Record what has come or gone on ``stream``."""
        files = [*map(describe_file, fds), *[REFUSED] * refused]
        for record in self._streams[stream].feed(time.monotonic(), data, files):
            self._write(record)

    def remark(self, event: str, fields: Mapping[str, object]) -> None:
        """Record an event and its fields."""
        self._write(Remark(t=time.monotonic(), session=self._session, event=event, fields=fields))

    def open_ring(self, action: StartRing, memory: GuestMemory, open_queue: OpenQueue) -> OpenedRing:
        """Map and open the ring of ``action`` so that its chains are recorded.

        Raises:
            VhostUserError: as :func:`host.ring.opened_ring.open_ring` does.
        """

        def guest_of(place: FileRange) -> int:
            return memory.table.guest_of(place)

        def open_recorded(action: StartRing, ring: Ring, read_guest: ReadGuest) -> DeviceVirtqueue:
            recorder = RingRecorder(self._session, self._write, guest_of)
            queue = self._rings[action.index] = RecordedVirtqueue(recorder, open_queue, action, ring, read_guest)
            return queue

        opened = open_ring(action, memory, open_recorded)
        features = action.features
        self._write(
            RingStart(
                t=time.monotonic(),
                session=self._session,
                ring=action.index,
                queue="" if action.queue is None else action.queue.value,
                size=action.place.size,
                packed=features.packed,
                base=opened.virtqueue.base,
                event_idx=features.event_idx,
                indirect_desc=features.indirect_desc,
                in_order=features.in_order,
            )
        )
        return opened._replace(observe=self._rings[action.index].observe)

    def ring_stopped(self, index: int, base: int) -> None:
        """Record that a ring is no longer served."""
        self._rings.pop(index, None)
        self._write(RingStop(t=time.monotonic(), session=self._session, ring=index, base=base))

    def ring_broke(self, index: int, reason: str) -> None:
        """Record that a ring is broken, and the chain at which it broke."""
        if (queue := self._rings.get(index)) is not None:
            queue.abandon()
        self._write(RingBroken(t=time.monotonic(), session=self._session, ring=index, reason=reason))

    def signal_file(
        self, request: FrontendRequest, index: int, fd: int | None, close: Callable[[Iterable[int]], None]
    ) -> KickFile | CallFile | None:
        """Return ``fd`` as the descriptor of queue ``index`` that ``request`` sets, its use recorded; None for
        None.

        Raises:
            VhostUserError: it cannot be one; the caller still owns it.
        """
        if fd is None:
            return None
        if request is FrontendRequest.SET_VRING_KICK:
            return RecordedKickFile(fd, close, partial(self._signalled, index, KICK))
        what = CALL if request is FrontendRequest.SET_VRING_CALL else ERR
        return RecordedCallFile(fd, partial(self._signalled, index, what))

    def _signalled(self, index: int, what: str) -> None:
        self._write(Signal(t=time.monotonic(), session=self._session, ring=index, what=what))
