"""The messages that let a virtual machine move, or outlive its back-end: dirty log, inflight file, device state.

Source: vhost-user specification, "Migration", "Inflight I/O tracking", "Migrating back-end state".
"""

from host.inflight.inflight import check_description, describe_file
from host.vhost_user import ring_control
from host.vhost_user.actions import (
    Effects,
    FinishState,
    LoadState,
    MakeInflightFile,
    SaveState,
    SetInflightFile,
    SetLog,
    SetLogFile,
)
from host.vhost_user.session import Answer, Handling, Session
from protocol.errors import VhostUserError
from protocol.vhost_user_codec import Message
from protocol.vhost_user_payloads import (
    DEVICE_STATE_LOAD,
    DEVICE_STATE_NO_FD,
    DEVICE_STATE_SAVE,
    DEVICE_STATE_STOPPED,
    DeviceStateTransfer,
    InflightDescription,
    LogDescription,
)

# -- the dirty log -----------------------------------------------------------------------------------------------------


def set_log_base(session: Session, message: Message) -> Handling:
    """SET_LOG_BASE: the dirty log."""
    assert isinstance(message.payload, LogDescription)
    yield SetLog(message.fds[0], message.payload.size, message.payload.offset)
    return 0


def set_log_fd(session: Session, message: Message) -> Effects:
    """SET_LOG_FD: the descriptor to signal when something was logged."""
    # A worker must not use the old descriptor while it is closed.
    yield from ring_control.pause_all(session)
    try:
        yield SetLogFile(message.fds[0])
    except VhostUserError:
        yield from ring_control.run_wanted(session)  # with the old descriptor, which stays
        raise
    yield from ring_control.run_wanted(session)


# -- the inflight file -------------------------------------------------------------------------------------------------


def get_inflight_fd(session: Session, message: Message) -> Handling:
    """GET_INFLIGHT_FD: make an inflight file and hand it out."""
    assert isinstance(message.payload, InflightDescription)
    wanted = message.payload
    description = describe_file(wanted.num_queues, wanted.queue_size, packed=session.packed)
    fd = yield MakeInflightFile(description.mmap_size)
    assert isinstance(fd, int)
    return Answer(description, (fd,))


def set_inflight_fd(session: Session, message: Message) -> Effects:
    """SET_INFLIGHT_FD: the inflight file to keep, which may tell of chains in flight."""
    assert isinstance(message.payload, InflightDescription)
    packed = session.packed
    check_description(message.payload, packed=packed)
    yield from ring_control.pause_all(session)
    try:
        yield SetInflightFile(message.fds[0], message.payload, packed)
    except VhostUserError:
        yield from ring_control.run_wanted(session)  # with the old file, which stays
        raise
    for vring in session.vrings:
        vring.recovers = True
    yield from ring_control.run_wanted(session)


# -- the device's own state --------------------------------------------------------------------------------------------


def set_device_state_fd(session: Session, message: Message) -> Handling:
    """SET_DEVICE_STATE_FD: begin to save or to load the device's state."""
    assert isinstance(message.payload, DeviceStateTransfer)
    direction, phase = message.payload.direction, message.payload.phase
    if direction not in (DEVICE_STATE_SAVE, DEVICE_STATE_LOAD) or phase != DEVICE_STATE_STOPPED:
        raise VhostUserError(f"a device state is not passed in direction {direction} in phase {phase}")
    if any(vring.started for vring in session.vrings):
        raise VhostUserError("a device state is passed only while every ring is stopped")
    yield (SaveState if direction == DEVICE_STATE_SAVE else LoadState)(message.fds[0])
    return DEVICE_STATE_NO_FD


def check_device_state(session: Session, _message: Message) -> Handling:
    """CHECK_DEVICE_STATE: wait for the transfer, and after a load go on from the state."""
    if any(vring.started for vring in session.vrings):
        raise VhostUserError("a device state is passed only while every ring is stopped")
    yield FinishState()
    return 0
