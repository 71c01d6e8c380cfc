"""A front-end's connection to a back-end, which can send anything and looks closely at what comes back."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from guest.vhost_user.frontend import Call
from protocol.errors import VhostUserError
from protocol.message_limits import FDS_MAX, PAYLOAD_MAX
from protocol.process.peer_process import peer_process
from protocol.vhost_user import HEADER_SIZE, FrontendRequest, form_of
from protocol.vhost_user_codec import build_message, parse_payload
from protocol.vhost_user_payloads import U64, Payload
from scripts.check.machine.deadline import DEADLINE
from scripts.check.machine.message_words import sent_in_words
from scripts.check.recording.check_recording import HUNG_UP, CheckRecording
from scripts.check.recording.recorder import Recorder
from scripts.check.recording.words import CLOSED
from scripts.check.verdict import Failed, HungUpError, NotAnswered, TargetError

REPLY_FLAGS: Final = 0x5
"""Version 1 and REPLY: what the flags of every reply are. Front-ends compare for equality."""

DONE: Final = 0
"""What an acknowledgement says of a request that was carried out."""

Result = TypeVar("Result")


class FrontendConnection:
    """A connected socket to the back-end. Every wait ends with its ``patience`` (:data:`DEADLINE`).

    It is a session of ``recording`` where there is one. ``fds`` are the descriptors that came with the last reply; the
    connection closes them with the next.
    """

    def __init__(self, path: Path | socket.socket, recording: CheckRecording | None = None) -> None:
        """Connect.

        Raises:
            TargetError: there is no socket, or it takes no connection.
        """
        self.socket = path if isinstance(path, socket.socket) else connect(path)
        self.patience = DEADLINE
        """Seconds in which the back-end has to take what is sent, and in which the whole of a reply has to come."""
        self.fds: tuple[int, ...] = ()
        self._recording = recording
        self.recorder: Recorder | None = None
        """Where this session is recorded, None for nowhere."""
        if recording is not None:
            self.recorder = recording.connected(peer_process(self.socket).pid)
        self._is_hung_up = False
        self._sent = b""

    @property
    def peer_pid(self) -> int:
        """Id of the process that listens, as the kernel noted it."""
        return peer_process(self.socket).pid

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes, with file descriptors on the first of them.

        Raises:
            HungUpError: the back-end ended the connection.
        """
        if self.recorder is not None:
            self.recorder.sent(data, fds)
        self._sent = data
        self.socket.settimeout(self.patience)
        try:
            if fds:
                data = data[socket.send_fds(self.socket, [data], list(fds)) :]
            if data:
                self.socket.sendall(data)
        except TimeoutError as error:
            raise NotAnswered(f"the back-end did not read {len(data)} bytes for {self.patience:g} s") from error
        except ConnectionError as error:
            raise self._hung_up() from error

    def request(
        self, request: FrontendRequest, payload: Payload = None, fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> None:
        """Send one well-formed message."""
        self.send(build_message(request, payload, need_reply=need_reply), fds)

    # -- receiving --------------------------------------------------------------------------------------------------

    def raw_reply(self) -> tuple[int, int, bytes]:
        """Return the next reply as it is: request number, flags, payload.

        Raises:
            Failed: there is none in time, or its size is beyond every message's.
            HungUpError: the back-end ended the connection.
        """
        self._drop_fds()
        header = self._exactly(HEADER_SIZE)
        request, flags, size = struct.unpack("<III", header)
        if size > PAYLOAD_MAX:
            raise NotAnswered(f"a reply's header {header.hex()} announces {size} bytes of payload")
        payload = self._exactly(size)
        return request, flags, payload

    def _exactly(self, size: int) -> bytes:
        data = b""
        end = time.monotonic() + self.patience  # for the whole: a back-end may send a byte now and then
        while len(data) < size:
            try:
                self._wait_until(end)
                piece, fds, _, _ = socket.recv_fds(self.socket, size - len(data), FDS_MAX)
            except TimeoutError as error:
                raise NotAnswered(f"no reply within {self.patience:g} s ({len(data)} of {size} bytes came)") from error
            except ConnectionError as error:
                raise self._hung_up() from error
            self.fds += tuple(fds)
            if not piece:
                raise self._hung_up()
            if self.recorder is not None:
                self.recorder.received(piece, fds)
            data += piece
        return data

    def _wait_until(self, end: float) -> None:
        # Raises TimeoutError at once if it is later.
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.socket.settimeout(left)

    def _hung_up(self) -> HungUpError:
        self._is_hung_up = True
        return HungUpError(f"{HUNG_UP} on {sent_in_words(self._sent)}" if self._sent else HUNG_UP)

    def reply_to(self, request: FrontendRequest) -> bytes:
        """Return the payload of the next reply, which has to be one to ``request`` with the flags of a reply.

        Raises:
            Failed: it is not.
        """
        number, flags, payload = self.raw_reply()
        if number != request:
            raise Failed(f"a reply to request {number} came after {request.name} ({int(request)})", "V-2")
        if flags != REPLY_FLAGS:
            raise Failed(f"the reply to {request.name} has flags {flags:#x} instead of {REPLY_FLAGS:#x}", "V-2")
        return payload

    # -- both -------------------------------------------------------------------------------------------------------

    def ask(self, request: FrontendRequest, payload: Payload = None, fds: Sequence[int] = ()) -> Payload:
        """Send one message with NEED_REPLY and return the answer: the value of the request's own reply, or the number
        of the acknowledgement, which is 0 for done."""
        self.request(request, payload, fds, need_reply=True)
        return self._value(request, self.reply_to(request))

    def query(self, request: FrontendRequest, payload: Payload = None, fds: Sequence[int] = ()) -> Payload:
        """Send a message that has a reply of its own, without NEED_REPLY, and return that reply's value."""
        self.request(request, payload, fds)
        return self._value(request, self.reply_to(request))

    def number(self, request: FrontendRequest) -> int:
        """Return the 64-bit number that a query such as GET_FEATURES is answered with."""
        value = self.query(request)
        assert isinstance(value, int)
        return value

    @staticmethod
    def _value(request: FrontendRequest, payload: bytes) -> Payload:
        form = form_of(request).reply or U64
        if not payload:
            return None
        try:
            return parse_payload(form, payload)
        except VhostUserError as error:
            raise NotAnswered(f"the reply to {request.name} is malformed: {payload.hex()}: {error}") from error

    def perform(self, calls: Generator[Call, Payload, Result]) -> Result:
        """Carry out the steps of a sans-IO front-end; return its result."""
        answer: Payload = None
        try:
            call = next(calls)
            while True:
                self.send(call.data, call.fds)
                answer = self._value(call.request, self.reply_to(call.request)) if call.reply_expected else None
                call = calls.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def perform_at_once(self, calls: Iterable[Generator[Call, Payload, None]]) -> None:
        """Carry out steps that want no more than to be acknowledged: send all of them, then read the answers.

        Raises:
            VhostUserError: one was refused.
        """
        unanswered: list[Call] = []
        try:
            for step in calls:
                with contextlib.suppress(StopIteration):
                    call = next(step)
                    while True:
                        self.send(call.data, call.fds)
                        unanswered += [call] if call.reply_expected else []
                        call = step.send(DONE)
        except HungUpError:
            if not unanswered:
                raise  # else it is the oldest of them over which it did
        for call in unanswered:
            self._sent = call.data
            if self._value(call.request, self.reply_to(call.request)) != DONE:
                raise VhostUserError(f"the back-end refused {call.request.name}")

    def is_usable(self) -> bool:
        """Return whether the connection still answers GET_FEATURES."""
        try:
            self.number(FrontendRequest.GET_FEATURES)
        except (HungUpError, Failed):
            return False
        return True

    def ends(self, seconds: float = DEADLINE) -> bool:
        """Return whether the back-end ends the connection within ``seconds``; what it sends before is dropped."""
        end = time.monotonic() + seconds
        try:
            self._wait_until(end)
            while data := self.socket.recv(PAYLOAD_MAX):
                if self.recorder is not None:
                    self.recorder.received(data)
                self._wait_until(end)
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        self._is_hung_up = True
        return True

    def _drop_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = ()

    def close(self) -> None:
        """Close the connection and the descriptors of the last reply."""
        self._drop_fds()
        self.socket.close()
        recorder, self.recorder = self.recorder, None
        if recorder is not None and self._recording is not None:
            self._recording.ended(recorder, HUNG_UP if self._is_hung_up else CLOSED)


def connect(path: Path) -> socket.socket:
    """Return a socket connected to the one at ``path``.

    Raises:
        TargetError: there is none, or it takes no connection.
    """
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(DEADLINE)
    try:
        ours.connect(str(path))
    except OSError as error:
        ours.close()
        why = "no connection was taken in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise TargetError(f"{path}: {why}") from error
    return ours
