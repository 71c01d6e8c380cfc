"""A back-end of any device type as the target of the generic cases, and what it offers.

:func:`open_backend` connects once to learn the features. Each case is then given a :class:`Target` with a connection of
its own. Many back-ends serve one front-end at a time, and some end with it: so a connection is closed before the next
is made, and a program of ours is started again when it has ended.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.virtio import PROTOCOL_FEATURES, feature_mask, has_feature
from scripts.check.generic.child_crashes import ChildCrashes
from scripts.check.generic.target import Facts, Target
from scripts.check.machine.connection import REPLY_FLAGS, FrontendConnection, connect
from scripts.check.machine.deadline import DEADLINE, becomes_true
from scripts.check.machine.program import Program
from scripts.check.recording.check_recording import CheckRecording
from scripts.check.verdict import SURVIVES, Failed, HungUpError, TargetError

_TO_END: Final = 2.0
"""Seconds that a program may take to end after its front-end has gone."""

_TO_SHOW: Final = 0.3
"""Seconds after its first front-end in which a program shows that it serves but one."""

_HINT: Final = "; one that has ended is started again with --start COMMAND"

_SOCKETS: Final = Path("/proc/net/unix")
_ACCEPTS: Final = 0x10000  # SO_ACCEPTCON, in the flags there

_NEEDED_TO_ASK: Final = feature_mask(ProtocolFeature.MQ, ProtocolFeature.CONFIGURE_MEM_SLOTS)


class Backend:
    """A back-end that listens at ``path``.

    ``facts`` is what it offers. ``ends_with_front_end`` tells that a program of ours serves one front-end and ends.
    """

    def __init__(self, path: Path, program: Program | None, recording: CheckRecording | None = None) -> None:
        self.path = path
        self.program = program
        self._recording = recording
        self._spare: FrontendConnection | None = None
        self._crash = ""
        self._children = ChildCrashes()
        self.facts = Facts()
        self.ends_with_front_end = False

    def learn(self) -> None:
        """Connect and ask what is offered.

        Raises:
            TargetError: no back-end answers there.
        """
        connection = self._greeted()
        try:
            self.facts = _facts_of(self.path, connection)
            if not self.facts.features:
                raise TargetError(
                    f"{self.path}: the back-end offers no feature at all, neither VERSION_1 nor protocol features: "
                    "there is nothing to judge"
                )
        finally:
            connection.close()
        self.ends_with_front_end = self.program is not None and becomes_true(self._has_ended, _TO_SHOW)

    @contextmanager
    def fresh(self) -> Iterator[Target]:
        """Give a case its target.

        Raises:
            TargetError: the back-end does not answer.
        """
        try:
            connection = self._greeted()
        except TargetError as error:
            if self.program is not None:
                raise
            raise TargetError(f"{error}{_HINT}") from error
        target = Target(self, connection)
        if self.program is not None:
            self.program.mark()
        try:
            yield target
        finally:
            target.close()

    def reconnected(self) -> FrontendConnection:
        """Return a new connection that answered GET_FEATURES. The one before has to be closed.

        Raises:
            TargetError: the back-end takes none, or does not answer.
        """
        return self._greeted()

    def connected(self) -> FrontendConnection:
        """Return a new connection on which nothing was sent. The one before has to be closed.

        Raises:
            TargetError: the back-end takes none.
        """
        if self.program is not None and self.ends_with_front_end and becomes_true(self._has_ended, _TO_END):
            self._start(self.program)
        return FrontendConnection(connect(self.path), self._recording)

    def second(self) -> FrontendConnection | None:
        """Return another connection beside the one that there is, None if the back-end takes none."""
        try:
            return FrontendConnection(connect(self.path), self._recording)
        except TargetError:
            return None

    def check_survival(self, target: Target) -> None:
        """Close the target's connections; check that a program of ours, or its child, is not ended by a signal.

        Raises:
            Failed: it is, or it does not come up again.
        """
        target.close()
        if self.program is None:
            return  # the next case finds out
        self._crash = ""
        try:
            self._spare = self._greeted()
        except TargetError as error:
            raise Failed(str(error), SURVIVES) from error
        if crash := self._crash or self._children.take():
            raise Failed(crash, SURVIVES)

    def close(self) -> None:
        """Close what is open, end the program."""
        if self._spare is not None:
            self._spare.close()
        self._children.close()
        if self.program is not None:
            self.program.close()

    def _greeted(self) -> FrontendConnection:
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.is_usable():
                return spare
            spare.close()
        if self.program is None:
            return self._greeted_once()
        if self.program.status() is None:
            # It runs, unless it is about to end because its last front-end has gone.
            try:
                return self._greeted_once()
            except TargetError:
                if not becomes_true(self._has_ended, _TO_END):
                    raise
        self._start(self.program)
        try:
            return self._greeted_once()
        except TargetError as error:
            if becomes_true(self._has_ended, _TO_END):
                raise TargetError(self.program.how_it_ended()) from error
            raise

    def _has_ended(self) -> bool:
        return self.program is not None and self.program.status() is not None

    def _greeted_once(self) -> FrontendConnection:
        connection = FrontendConnection(connect(self.path), self._recording)
        try:
            _greet(self.path, connection)
        except TargetError:
            connection.close()
            raise
        if self.program is not None and self.program.pid is not None:
            self._children.watch(self.program.pid)
        return connection

    def _start(self, program: Program) -> None:
        """Start the program and wait until it listens."""
        if (program.status() or 0) < 0:
            self._crash = program.how_it_ended()
        program.start()
        if not becomes_true(lambda: self._has_ended() or _is_listening(self.path)):
            raise TargetError(f"{program.words[0]} runs, but does not listen at {self.path} within {DEADLINE:g} s")
        if self._has_ended():
            raise TargetError(program.how_it_ended())


def _is_listening(path: Path) -> bool:
    """Return whether a process listens at ``path``, without connecting: some back-ends serve one connection ever."""
    absolute = str(path.absolute())
    for line in _SOCKETS.read_text(errors="replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS and fields[7] in (absolute, str(path)):
            return True
    return False


def _greet(path: Path, connection: FrontendConnection) -> int:
    """Return the features of the back-end, the first thing that a front-end asks for.

    Raises:
        TargetError: what is at the other end is no vhost-user back-end, or none that serves us.
    """
    try:
        with suppress(HungUpError):  # it may have said something before
            connection.request(FrontendRequest.GET_FEATURES)
        reply = connection.raw_reply()
    except HungUpError as error:
        raise TargetError(f"{path}: the connection was closed instead of an answer to GET_FEATURES") from error
    except Failed as error:
        raise TargetError(f"{path}: GET_FEATURES: {error.reason}") from error
    number, flags, payload = reply
    if number != FrontendRequest.GET_FEATURES or flags & 0x7 != REPLY_FLAGS or len(payload) != 8:
        seen = struct.pack("<III", number, flags, len(payload)) + payload
        raise TargetError(f"{path}: no vhost-user back-end: GET_FEATURES was answered with {seen[:32].hex()}")
    return int.from_bytes(payload, "little")


def _check_step(path: Path, connection: FrontendConnection) -> None:
    """Check that a message without a reply is not answered: after one that is, no reply belongs to its request.

    Raises:
        TargetError: it is.
    """
    try:
        connection.request(FrontendRequest.SET_OWNER)
        connection.request(FrontendRequest.GET_FEATURES)
        number, flags, payload = connection.raw_reply()
    except (HungUpError, Failed):
        return  # the cases find out
    if number == FrontendRequest.SET_OWNER:
        seen = struct.pack("<III", number, flags, len(payload)) + payload
        raise TargetError(
            f"{path}: SET_OWNER, which has no reply, was answered with {seen[:32].hex()}: the replies after it are out "
            "of step, and there is nothing to judge"
        )


def _facts_of(path: Path, connection: FrontendConnection) -> Facts:
    """Ask for what is asked for before anything else. What is refused here counts as not offered."""
    features = _greet(path, connection)
    _check_step(path, connection)
    protocol_features = queues = slots = 0
    try:
        if features & PROTOCOL_FEATURES:
            protocol_features = connection.number(FrontendRequest.GET_PROTOCOL_FEATURES)
            wanted = protocol_features & _NEEDED_TO_ASK
            connection.request(FrontendRequest.SET_PROTOCOL_FEATURES, wanted)
            if has_feature(wanted, ProtocolFeature.MQ):
                queues = connection.number(FrontendRequest.GET_QUEUE_NUM)
            if has_feature(wanted, ProtocolFeature.CONFIGURE_MEM_SLOTS):
                slots = connection.number(FrontendRequest.GET_MAX_MEM_SLOTS)
    except (Failed, HungUpError):
        pass
    return Facts(
        features=features,
        protocol_features=protocol_features,
        queues=queues,
        slots=slots,
    )


@contextmanager
def open_backend(path: Path, start: str | None = None, recording: CheckRecording | None = None) -> Iterator[Backend]:
    """Yield the back-end that listens at ``path``, or the one that the command ``start`` makes listen there.

    Raises:
        TargetError: no back-end answers, or the command cannot be started or ended at once.
        UsageError: the command is no command line.
    """
    program = None if start is None else Program(start)
    backend = Backend(path, program, recording)
    try:
        backend.learn()
        yield backend
    finally:
        backend.close()
