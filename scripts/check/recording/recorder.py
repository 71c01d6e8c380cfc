"""Records a check tool's own connection: the front-end that plays a machine, a device, or a proxy between both.

A connection calls :meth:`Recorder.sent` and :meth:`Recorder.received` with the bytes as they went; everything else is
optional and makes the explanation richer::

    recorder = Recorder(file.write, session=1, side=FRONT_END)
    recorder.begin(peer_pid)
    recorder.sent(request, fds)
    recorder.received(reply)
    recorder.end("the case is over")
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from host.recording.file_facts import describe_file
from protocol.recording.records import (
    BACK_END,
    CALL,
    FRONT_END,
    KICK,
    Record,
    RecordedDescriptor,
    Remark,
    RingStart,
    RingStop,
    SessionBegin,
    SessionEnd,
    Signal,
    TakenChain,
    UsedChain,
)
from protocol.recording.stream import RecordedStream
from protocol.vhost_user_codec import Channel

_SENT: Final = {
    FRONT_END: (Channel.FRONTEND_REQUESTS, Channel.FRONTEND_REPLIES),
    BACK_END: (Channel.BACKEND_REPLIES, Channel.BACKEND_REQUESTS),
}
"""What each side sends on the socket and on the back-end's channel. The other side sends the rest."""

_RECEIVED: Final = {
    FRONT_END: (Channel.BACKEND_REPLIES, Channel.BACKEND_REQUESTS),
    BACK_END: (Channel.FRONTEND_REQUESTS, Channel.FRONTEND_REPLIES),
}


class Recorder:
    """Session ``session`` as ``side`` sees it; its records go to ``write``.

    ``on_channel`` says that bytes went over the channel for the back-end's own requests and not over the socket.
    """

    def __init__(self, write: Callable[[Record], None], session: int, side: str = FRONT_END) -> None:
        self._write = write
        self._session = session
        self._side = side
        self._streams = {stream: RecordedStream(session, stream) for stream in Channel}

    def begin(self, pid: int = 0) -> None:
        """The connection is made; ``pid`` is the other side's process, 0 if unknown."""
        self._write(SessionBegin(t=time.monotonic(), session=self._session, pid=pid, side=self._side))

    def end(self, reason: str) -> None:
        """The connection is closed."""
        now = time.monotonic()
        for stream in self._streams.values():
            for noise in stream.flush(now):
                self._write(noise)
        self._write(SessionEnd(t=now, session=self._session, reason=reason))

    def sent(self, data: bytes, fds: Sequence[int] = (), *, on_channel: bool = False) -> None:
        """``data`` was sent with ``fds``, which are still open."""
        self.passed(_SENT[self._side][on_channel], data, fds)

    def received(self, data: bytes, fds: Sequence[int] = (), *, on_channel: bool = False) -> None:
        """``data`` was received with ``fds``, which are still open."""
        self.passed(_RECEIVED[self._side][on_channel], data, fds)

    def observe(self, direction: str, data: bytes, fds: Sequence[int] = ()) -> None:
        """``data`` was ``"sent"`` or ``"received"`` on the socket: the form of a connection's observer."""
        (self.sent if direction == "sent" else self.received)(data, fds)

    def passed(self, stream: Channel, data: bytes, fds: Sequence[int] = ()) -> None:
        """``data`` went on ``stream`` with ``fds``, which are still open."""
        for record in self._streams[stream].feed(time.monotonic(), data, [describe_file(fd) for fd in fds]):
            self._write(record)

    def remark(self, event: str, **fields: object) -> None:
        """Note what the check finds or does, such as the name of a case."""
        self._write(Remark(t=time.monotonic(), session=self._session, event=event, fields=fields))

    def kicked(self, ring: int) -> None:
        """The driver has kicked queue ``ring`` by its descriptor."""
        self._write(Signal(t=time.monotonic(), session=self._session, ring=ring, what=KICK))

    def called(self, ring: int) -> None:
        """The device has interrupted the driver by the descriptor of queue ``ring``."""
        self._write(Signal(t=time.monotonic(), session=self._session, ring=ring, what=CALL))

    def ring_started(
        self,
        ring: int,
        queue: str,
        size: int,
        *,
        packed: bool = False,
        base: int = 0,
        event_idx: bool = False,
        indirect_desc: bool = False,
        in_order: bool = False,
    ) -> None:
        """Queue ``ring`` is in use; ``queue`` is the value of a BalloonQueue, or ""."""
        self._write(
            RingStart(
                t=time.monotonic(),
                session=self._session,
                ring=ring,
                queue=queue,
                size=size,
                packed=packed,
                base=base,
                event_idx=event_idx,
                indirect_desc=indirect_desc,
                in_order=in_order,
            )
        )

    def ring_stopped(self, ring: int, base: int = 0) -> None:
        """Queue ``ring`` is no longer in use."""
        self._write(RingStop(t=time.monotonic(), session=self._session, ring=ring, base=base))

    def offered(
        self,
        ring: int,
        queue: str,
        head: int,
        descriptors: Sequence[RecordedDescriptor],
        *,
        table: tuple[int, ...] = (),
        indirect: Sequence[RecordedDescriptor] = (),
        held: bool = False,
        note: str = "",
    ) -> None:
        """A chain is in the ring. ``held`` says that the device may keep it as long as it likes (statistics)."""
        self._write(
            TakenChain(
                t=time.monotonic(),
                session=self._session,
                ring=ring,
                queue=queue,
                head=head,
                descriptors=tuple(descriptors),
                table=table,
                indirect=tuple(indirect),
                held=held,
                note=note,
            )
        )

    def used(self, ring: int, head: int, length: int, *, call: bool = False) -> None:
        """A used entry was seen; ``call`` says whether an interrupt came with it."""
        now = time.monotonic()
        self._write(UsedChain(t=now, session=self._session, ring=ring, head=head, length=length, call=call))
