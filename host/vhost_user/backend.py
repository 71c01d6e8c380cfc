"""One vhost-user session: the effects of every front-end message, decided without access to the operating system.

:func:`handle` is a generator. It *yields* the effects that a message has, one :data:`Action` at a time, and returns the
reply, if there is one. The shell performs each action before it asks for the next, throws the :class:`VhostUserError`
of a failed one back in, and sends the reply last: so an acknowledgement always follows its effect, and a refused
message changes nothing.

``HANDLERS`` says which function carries out which request; a group of requests is a file.

Source: vhost-user specification, "VHOST_USER_PROTOCOL_F_REPLY_ACK".
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from host.vhost_user import (
    config_requests,
    device_requests,
    feature_requests,
    memory_requests,
    migration_requests,
    ring_requests,
)
from host.vhost_user.actions import Action, ActionResult, EmitEvent
from host.vhost_user.session import Answer, Handler, MustClose, RefusedDriver, Session
from protocol.errors import VhostUserError
from protocol.vhost_user import FRONTEND_REQUEST_FORMS, FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import BadMessage, Message, build_ack, build_own_reply, build_refusal

HANDLERS: Final[Mapping[FrontendRequest, Handler]] = MappingProxyType(
    {
        FrontendRequest.GET_FEATURES: feature_requests.get_features,
        FrontendRequest.SET_FEATURES: feature_requests.set_features,
        FrontendRequest.GET_PROTOCOL_FEATURES: feature_requests.get_protocol_features,
        FrontendRequest.SET_PROTOCOL_FEATURES: feature_requests.set_protocol_features,
        FrontendRequest.GET_QUEUE_NUM: feature_requests.get_queue_num,
        FrontendRequest.SET_OWNER: feature_requests.set_owner,
        FrontendRequest.RESET_OWNER: feature_requests.reset_owner,
        FrontendRequest.SET_BACKEND_REQ_FD: feature_requests.set_backend_req_fd,
        FrontendRequest.SET_STATUS: device_requests.set_status,
        FrontendRequest.GET_STATUS: device_requests.get_status,
        FrontendRequest.RESET_DEVICE: device_requests.reset_device,
        FrontendRequest.GET_CONFIG: config_requests.get_config,
        FrontendRequest.SET_CONFIG: config_requests.set_config,
        FrontendRequest.SET_MEM_TABLE: memory_requests.set_mem_table,
        FrontendRequest.GET_MAX_MEM_SLOTS: memory_requests.get_max_mem_slots,
        FrontendRequest.ADD_MEM_REG: memory_requests.add_mem_reg,
        FrontendRequest.REM_MEM_REG: memory_requests.rem_mem_reg,
        FrontendRequest.SET_LOG_BASE: migration_requests.set_log_base,
        FrontendRequest.SET_LOG_FD: migration_requests.set_log_fd,
        FrontendRequest.GET_INFLIGHT_FD: migration_requests.get_inflight_fd,
        FrontendRequest.SET_INFLIGHT_FD: migration_requests.set_inflight_fd,
        FrontendRequest.SET_DEVICE_STATE_FD: migration_requests.set_device_state_fd,
        FrontendRequest.CHECK_DEVICE_STATE: migration_requests.check_device_state,
        FrontendRequest.SET_VRING_NUM: ring_requests.set_vring_num,
        FrontendRequest.SET_VRING_ADDR: ring_requests.set_vring_addr,
        FrontendRequest.SET_VRING_BASE: ring_requests.set_vring_base,
        FrontendRequest.GET_VRING_BASE: ring_requests.get_vring_base,
        FrontendRequest.GET_VRING_BASE_SKIP_DRAIN: ring_requests.get_vring_base,
        FrontendRequest.SET_VRING_KICK: ring_requests.set_vring_kick,
        FrontendRequest.SET_VRING_CALL: ring_requests.set_vring_file,
        FrontendRequest.SET_VRING_ERR: ring_requests.set_vring_file,
        FrontendRequest.SET_VRING_ENABLE: ring_requests.set_vring_enable,
        FrontendRequest.VRING_KICK: ring_requests.vring_kick,
    }
)
"""The function that carries out each request."""

assert set(HANDLERS) == set(FrontendRequest)


@dataclass(frozen=True, slots=True)
class Reply:
    """The bytes of a reply and the file descriptors that ride on it, which the sender closes afterwards."""

    data: bytes
    fds: tuple[int, ...] = ()


_KNOWN: Final = frozenset(map(int, FrontendRequest))


def handle(session: Session, message: Message | BadMessage) -> Generator[Action, ActionResult, Reply | None]:
    """Carry out one message: yield its effects, return the reply or None.

    Raises:
        MustClose: the message is wrong and its sender waits for an answer that does not exist, or the specification
            wants the connection closed.
    """
    try:
        if isinstance(message, BadMessage):
            raise message.error
        request = message.request
        if not isinstance(request, FrontendRequest):
            raise VhostUserError(f"request {request} is not for a back-end")
        needed = FRONTEND_REQUEST_FORMS[request].needs
        if needed is not None and not session.has_protocol_feature(needed):
            raise VhostUserError(f"{request.name} needs {needed.name}, which was not negotiated")
        answer = yield from HANDLERS[request](session, message)
    except VhostUserError as error:
        yield EmitEvent("message_refused", {"request": _name(message.request), "reason": str(error)})
        if isinstance(error, MustClose):
            raise
        if isinstance(error, RefusedDriver) and not _is_heard(session, message):
            raise MustClose(f"{error}, and {_name(message.request)} wanted no reply that could say so") from error
        return _refuse(session, message, error)
    if isinstance(answer, Answer):
        return Reply(build_own_reply(request, answer.payload), answer.fds)
    if answer is not None:
        return Reply(build_own_reply(request, answer))
    return Reply(build_ack(request, 0)) if _wants_ack(session, message) else None


def _wants_ack(session: Session, message: Message | BadMessage) -> bool:
    return message.need_reply and session.has_protocol_feature(ProtocolFeature.REPLY_ACK)


def _is_heard(session: Session, message: Message | BadMessage) -> bool:
    # With a device status the driver sees that the device does not take its features (virtio 1.2, 3.1.1, step 6).
    told_by_status = message.request == FrontendRequest.SET_FEATURES
    return _wants_ack(session, message) or (told_by_status and session.has_protocol_feature(ProtocolFeature.STATUS))


def _refuse(session: Session, message: Message | BadMessage, error: VhostUserError) -> Reply | None:
    # The sender of a request with a reply of its own takes whatever comes for that reply, so it cannot be told unless
    # that reply can say error.
    if message.request in _KNOWN:
        request = FrontendRequest(message.request)
        form = FRONTEND_REQUEST_FORMS[request]
        replies = not form.reply_is_optional or form.needs is None or session.has_protocol_feature(form.needs)
        if form.reply is not None and replies:
            if form.refusal is None:
                raise MustClose(str(error))
            return Reply(build_refusal(request))
    return Reply(build_ack(message.request, 1)) if _wants_ack(session, message) else None


def _name(request: int) -> str:
    try:
        return FrontendRequest(request).name
    except ValueError:
        return str(request)
