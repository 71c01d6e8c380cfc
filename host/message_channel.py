"""The stream of messages between a front-end and its session: whole messages with their descriptors in, replies out.

A front-end that stops in the middle of either is waited for :data:`MESSAGE_TIMEOUT` at most. Received descriptors are
examined before anything else (:mod:`host.descriptors.received_file`): those of other types than the listed ones are
closed by the peer's helpers, and their message is refused.

A refusal costs a message and keeps the session: QEMU aborts when its back-end hangs up. Only these end a session:

==============================================  =======================================================================
event                                           why the next message cannot be read, or a refusal cannot be sent
==============================================  =======================================================================
a wrong version, a reply among the requests,    the header is not one, so where the next message begins is unknown
a payload of more than ``PAYLOAD_MAX`` bytes
more than 253 descriptors on one message        each byte of a message can carry more of them
the rest of a message does not come in time     the front-end waits for nothing, and would hold what it has sent
replies are not read in time                    an answer left out would make the next one pass for it
a refused request whose own reply cannot say    its sender takes any answer for that reply (``MustClose``)
error
INBAND_NOTIFICATIONS without what it needs      the specification wants it (``MustClose``)
one session too many of a process               it would hold what the limit keeps for others (``PeerLimitError``)
==============================================  =======================================================================

Descriptors that the kernel could not hand over (MSG_CTRUNC) do not: the bytes are complete, the message is refused.
"""

import array
import asyncio
import os
import socket
from collections.abc import Mapping
from typing import Final

from host.descriptors.received_file import FileKind, is_connected_to, kind_at_once, kind_of_file
from host.descriptors.socket_read import bytes_seen, note_seen, receive, take_seen, until_ready
from host.peers.peers import Membership
from host.recording.session_recording import NOT_RECORDED, SessionRecording
from host.supervision.session_journal import NOT_JOURNALED, SessionJournal
from host.vhost_user.backend import Reply
from protocol.errors import FramingError, SessionEnded, VhostUserError
from protocol.message_limits import PAYLOAD_MAX
from protocol.vhost_user_codec import BadMessage, Channel, Message, MessageReader

MESSAGE_TIMEOUT: Final = 10.0
"""Seconds that the rest of a message may take once its first byte has come, and that a reply may take to be sent."""

LOOK_AHEAD: Final = 2 * PAYLOAD_MAX
"""Bytes that are seen at once where they stay on the socket: more than a message has."""


class MessageChannel:
    """One session's messages over a connected socket, which it owns."""

    def __init__(
        self,
        sock: socket.socket,
        member: Membership,
        recording: SessionRecording = NOT_RECORDED,
        journal: SessionJournal = NOT_JOURNALED,
    ) -> None:
        self._socket = sock
        self._journal = journal
        self._member = member
        self._helpers = member.helpers
        self._recording = recording
        self._unlooked: list[int] = []
        self._unfit: VhostUserError | None = None
        self._reader = MessageReader(Channel.FRONTEND_REQUESTS)
        self._loop = asyncio.get_running_loop()

    @property
    def held(self) -> int:
        """Descriptors of a message that is not complete."""
        return len(self._unlooked) + self._reader.fds_waiting

    def close(self) -> None:
        """Close the socket and the descriptors of a message that was not complete.

        Messages that were not read may carry descriptors too, so the socket itself may take long to close.
        """
        self._helpers.close((*self._unlooked, *self._reader.take_fds()))
        self._unlooked.clear()
        self._helpers.close_by(self._socket.close)

    async def next_message(self) -> Message | BadMessage:
        """Return the next message, whose descriptors are the caller's.

        Raises:
            SessionEnded: the front-end has gone.
            FramingError: the bytes are not a message, or its rest does not come in time.
        """
        self._member.recount()
        # One deadline for the whole rest of a message: a byte now and then does not extend it.
        deadline: float | None = None
        while (message := self._whole_message()) is None:
            if self._reader.in_message and deadline is None:
                # What follows a header is most often there already.
                deadline = self._loop.time() + MESSAGE_TIMEOUT
                if await self._receive():
                    continue
            try:
                async with asyncio.timeout_at(deadline):
                    await until_ready(self._socket.fileno(), self._loop.add_reader, self._loop.remove_reader)
            except TimeoutError:
                raise FramingError(f"the rest of a message did not come within {MESSAGE_TIMEOUT:.0f} s") from None
            await self._receive()
        return message

    def take_over(self, files: Mapping[int, int]) -> Message | BadMessage | None:
        """Begin to read where another process has stopped, whose ``files`` are by number. Return the message that it
        had in hand, if that is whole."""
        pieces, taken = self._journal.left()
        if not taken:
            take_seen(self._socket, bytes_seen(self._socket))
            self._journal.taken()
        note_seen(self._socket, 0)
        for piece in pieces:
            fds = [files[number] for number in piece.files]
            self._recording.passed(Channel.FRONTEND_REQUESTS, piece.data, fds)  # where it was recorded it was not whole
            self._reader.feed(piece.data, fds)
            if piece.unfit:
                self._unfit = VhostUserError(piece.unfit)
        return self._whole_message()

    def _whole_message(self) -> Message | BadMessage | None:
        message = self._reader.next_message()
        if message is None or self._unfit is None:
            return message
        unfit, self._unfit = self._unfit, None
        return BadMessage(request=message.request, need_reply=message.need_reply, fds=message.fds, error=unfit)

    async def _receive(self) -> bool:
        # Returns whether there was something to read.
        try:
            if self._journal.is_kept:
                data, fds, message_flags = self._look_ahead()
            else:
                data, fds, message_flags = receive(self._socket, self._reader.bytes_desired())
        except BlockingIOError:
            return False
        except OSError as error:
            raise SessionEnded(f"front-end gone: {error.strerror}") from error
        self._unlooked += fds
        fit = await self._look(self._unlooked) if fds else []
        self._unlooked.clear()
        if message_flags & socket.MSG_CTRUNC:
            # Which of them are missing cannot be known.
            self._unfit = VhostUserError("file descriptors were lost on the way, the daemon has too many open")
        if self._journal.is_kept and data:
            await self._journal.came(data, fit, "" if self._unfit is None else str(self._unfit))
            take_seen(self._socket, len(data))
            self._journal.taken()
        self._recording.passed(Channel.FRONTEND_REQUESTS, data, fit, len(fds) - len(fit))
        self._reader.feed(data, fit)
        if not data:
            raise SessionEnded(
                "front-end gone in the middle of a message" if self._reader.in_message else "front-end gone"
            )
        return True

    def _look_ahead(self) -> "tuple[bytes, array.array[int], int]":
        # Like receive(), but what is returned stays on the socket.
        data, fds, message_flags = receive(self._socket, LOOK_AHEAD, peek=True)
        rest = self._reader.rest_of_message(data)
        if len(data) > rest:
            # A look goes on into the next messages, and ends after one with descriptors. They are that one's.
            self._helpers.close(fds)
            data, fds, message_flags = data[:rest], array.array("i"), 0
        note_seen(self._socket, rest)
        return data, fds, message_flags

    async def _look(self, fds: list[int]) -> list[int]:
        # Returns those that are on the list of types; the others are closed, and the message is refused. All of them
        # are counted already as what the session holds.
        try:
            self._member.check(0)
        except VhostUserError as error:
            self._unfit = error
            self._helpers.close(fds)
            return []
        unfit: list[int] = []
        files: list[int] = []
        for fd in fds:
            try:
                kind = kind_at_once(fd)
                if kind is None:
                    files.append(fd)
                elif kind is FileKind.SOCKET and is_connected_to(fd, self._socket.getsockname()):
                    # Held here it would keep a session alive whose front-end has gone.
                    raise VhostUserError("a socket that is connected to this daemon is not taken")
            except VhostUserError as error:
                unfit.append(fd)
                self._unfit = error
        if files:
            unfit += await self._look_aside(files)
        self._helpers.close(unfit)
        return [fd for fd in fds if fd not in unfit]

    async def _look_aside(self, files: list[int]) -> list[int]:
        def look() -> dict[int, VhostUserError]:
            unfit = {}
            for fd in files:
                try:
                    kind_of_file(fd)
                except VhostUserError as error:
                    unfit[fd] = error
            return unfit

        try:
            unfit = await self._helpers.run("looking at a file", look)
        except VhostUserError as error:
            unfit = dict.fromkeys(files, error)
        if unfit:
            self._unfit = next(iter(unfit.values()))
        return list(unfit)

    async def answer(self, reply: Reply | None) -> None:
        """Have the journal know that a message was carried out. Send ``reply``, if there is one, where that does not.

        Raises:
            SessionEnded: the front-end has gone or does not read.
        """
        if reply is not None:
            self._recording.passed(Channel.BACKEND_REPLIES, reply.data, reply.fds)
        if not await self._journal.handled(reply) and reply is not None:
            await self._send(reply)

    async def _send(self, reply: Reply) -> None:
        """Send ``reply`` and close its descriptors.

        Raises:
            SessionEnded: the front-end has gone or does not read.
        """
        data = reply.data
        # Not socket.send_fds(), which forgets its flags. The descriptors ride on the first byte, hence only once.
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", reply.fds))] if reply.fds else []
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        try:
            async with asyncio.timeout(MESSAGE_TIMEOUT):
                while data:
                    try:
                        data = data[self._socket.sendmsg([data], ancillary, flags) :]
                    except BlockingIOError:
                        await until_ready(self._socket.fileno(), self._loop.add_writer, self._loop.remove_writer)
                    else:
                        ancillary = []
        except TimeoutError:
            raise SessionEnded("front-end does not read its replies") from None
        except OSError as error:
            raise SessionEnded(f"front-end gone: {error.strerror}") from error
        finally:
            for fd in reply.fds:
                os.close(fd)
