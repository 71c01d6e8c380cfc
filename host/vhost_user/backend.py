"""One vhost-user session: what every front-end message does, decided without touching the operating system.

:meth:`Backend.handle` is a generator. It *yields* the effects that a message has, one :data:`Action` at a time, and
returns the reply, if there is one. The shell performs each action before it asks for the next, throws the
:class:`VhostUserError` of a failed one back in, and sends the reply last: so an acknowledgement always follows its
effect, and a refused message changes nothing.

This file knows how messages are answered; what they do is in the files of their groups (see
:mod:`host.vhost_user.session`).

Source: vhost-user specification, "VHOST_USER_PROTOCOL_F_REPLY_ACK".
"""

from collections.abc import Generator
from dataclasses import dataclass

from host.vhost_user.actions import Action, Announce, Effects
from host.vhost_user.config_requests import ConfigRequests
from host.vhost_user.device_requests import DeviceRequests
from host.vhost_user.feature_requests import FeatureRequests
from host.vhost_user.memory_requests import MemoryRequests
from host.vhost_user.migration_requests import REFUSALS, MigrationRequests
from host.vhost_user.ring_control import RingControl
from host.vhost_user.ring_requests import RingRequests
from host.vhost_user.session import NEEDED_FEATURE, Answer, Handler, MustClose, Session
from protocol.errors import VhostUserError
from protocol.vhost_user import FRONTEND_REQUEST_FORMS, FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import BadMessage, Message, build_own_reply, build_reply


@dataclass(frozen=True, slots=True)
class Reply:
    """The bytes of a reply and the file descriptors that ride on it, which whoever sends it closes afterwards."""

    data: bytes
    fds: tuple[int, ...] = ()


class Backend:
    """The state machine of one session. See the module's text for how to drive it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._rings = RingControl(session)
        self._config = ConfigRequests(session)
        self._handlers: dict[FrontendRequest, Handler] = {
            **FeatureRequests(session, self._rings).handlers,
            **DeviceRequests(session, self._rings).handlers,
            **self._config.handlers,
            **MemoryRequests(session, self._rings).handlers,
            **MigrationRequests(session, self._rings).handlers,
            **RingRequests(session, self._rings).handlers,
        }

    def handle(self, message: Message | BadMessage) -> Generator[Action, int | None, Reply | None]:
        """Carry out one message: yield its effects, return the reply or None.

        Raises:
            MustClose: the message is wrong and its sender waits for an answer that does not exist, or the specification
                wants the connection closed.
        """
        try:
            if isinstance(message, BadMessage):
                raise message.error
            own_reply = yield from self._carry_out(message)
        except VhostUserError as error:
            yield Announce("message_refused", {"request": _name(message.request), "reason": str(error)})
            if isinstance(error, MustClose):
                raise
            return self._refuse(message, error)
        if own_reply is not None:
            return own_reply
        return Reply(build_reply(message.request, 0)) if self._wants_ack(message) else None

    def _carry_out(self, message: Message) -> Generator[Action, int | None, Reply | None]:
        request = message.request
        if not isinstance(request, FrontendRequest):
            raise VhostUserError(f"request {request} is not for a back-end")
        if request not in self._handlers:
            raise VhostUserError(f"{request.name} needs a feature that was not offered")
        needed = NEEDED_FEATURE.get(request)
        if needed is not None and not self.session.has_protocol_feature(needed):
            raise VhostUserError(f"{request.name} needs {needed.name}, which was not negotiated")
        answer = yield from self._handlers[request](message)
        if isinstance(answer, Answer):
            return Reply(build_own_reply(request, answer.payload), answer.fds)
        return None if answer is None else Reply(build_own_reply(request, answer))

    def _wants_ack(self, message: Message | BadMessage) -> bool:
        return message.need_reply and self.session.has_protocol_feature(ProtocolFeature.REPLY_ACK)

    def _refuse(self, message: Message | BadMessage, error: VhostUserError) -> Reply | None:
        if message.request == FrontendRequest.GET_CONFIG:
            return Reply(build_reply(message.request))  # "a zero length payload in case of error"
        # The sender of a request with a reply of its own takes whatever comes for that reply, so it cannot be told
        # unless that reply can say error.
        has_own_reply = self._has_own_reply(message.request)
        if has_own_reply and message.request in REFUSALS:
            return Reply(build_own_reply(FrontendRequest(message.request), REFUSALS[message.request]))
        if has_own_reply:
            raise MustClose(str(error))
        return Reply(build_reply(message.request, 1)) if self._wants_ack(message) else None

    def _has_own_reply(self, request: int) -> bool:
        if request == FrontendRequest.SET_LOG_BASE:
            return self.session.has_protocol_feature(ProtocolFeature.LOG_SHMFD)
        try:
            return FRONTEND_REQUEST_FORMS[FrontendRequest(request)].reply is not None
        except ValueError:
            return False

    def change_config(self, **fields: int) -> bytes | None:
        """Set ``fields`` of the configuration space (names as in :class:`BalloonConfig`). Return the request to send on
        the back-end's channel, or None where no driver listens: it will read the fields when it starts."""
        return self._config.change(**fields)

    def ring_broke(self, index: int) -> Effects:
        """Take note that the driver broke the rules of ring ``index``: it stops until it is set up anew."""
        yield from self._rings.ring_broke(index)


def _name(request: int) -> str:
    try:
        return FrontendRequest(request).name
    except ValueError:
        return str(request)
