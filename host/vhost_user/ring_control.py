"""Which rings run: the only place where they are started and stopped, for all messages.

Source: vhost-user specification, "Ring states". :mod:`host.vhost_user.vring` has the states of one ring.
"""

from host.vhost_user.actions import (
    Effects,
    EmitEvent,
    ForgetDriver,
    LogRing,
    StartRing,
    StoppedRing,
    StopRing,
)
from host.vhost_user.config_change import need_reset, notify_config_change
from host.vhost_user.session import RefusedDriver, Session
from host.vhost_user.vring import RingEvent, RingState, Vring
from host.virtqueue.ring_place import RingLog
from host.virtqueue.virtqueue import RingFeatures
from protocol.errors import VhostUserError
from protocol.packed_ring import FRESH_BASE
from protocol.vhost_user import ProtocolFeature
from protocol.virtio import LOG_ALL, FeatureBit, has_feature
from protocol.virtio_balloon import BalloonQueue


def halt(session: Session, vring: Vring, *, drain: bool = True) -> Effects:
    """Stop ``vring`` until its next kick descriptor. For ``drain`` see :class:`host.vhost_user.actions.StopRing`."""
    # A started ring that is configured again begins anew, and only a kick descriptor starts it: reading the old
    # place in between could take a driver's reused memory for a ring.
    yield from suspend(session, vring, drain=drain)
    vring.move(RingEvent.HALT)
    vring.signal_first = False
    # With the last ring the driver is gone; the next one sets a poison value of its own before its first chain.
    if not any(each.started for each in session.vrings):
        session.balloon.driver_left()


def suspend(session: Session, vring: Vring, *, drain: bool = True) -> Effects:
    """Stop ``vring`` for the front-end, and take note whether others run on. Without any the driver is suspended or
    gone."""
    stopped = vring.running
    yield from pause(session, vring, drain=drain)
    runs = any(each.running for each in session.vrings)
    if stopped or not runs:
        session.is_quiet = not runs


def note_start(session: Session, vring: Vring) -> Effects:
    """Take note that the front-end starts ``vring``, before it runs.

    QEMU and User Mode Linux do not send a message about a reset of the virtual machine. The driver is a new one if all
    rings had stopped and a ring that was in use begins at a fresh base. A driver that was suspended, or whose machine
    was, goes on at the old base.
    """
    base = base_of(session, vring)
    if not _is_fresh(session, base):
        session.is_quiet = False
    elif session.is_quiet and not _is_fresh(session, vring.left_at):
        session.is_quiet = False
        yield from forget_driver(session)


def _is_fresh(session: Session, base: int) -> bool:
    return base in (0, FRESH_BASE) if session.packed else base & 0xFFFF == 0


def forget_driver(session: Session) -> Effects:
    """Forget the settings of an earlier driver."""
    session.forget_places()
    session.balloon.forget_driver()
    yield ForgetDriver()


def halt_all(session: Session) -> Effects:
    """Stop every ring until its next kick descriptor."""
    for vring in session.vrings:
        yield from halt(session, vring)


def pause(session: Session, vring: Vring, *, broken: bool = False, drain: bool = True) -> Effects:
    """Stop ``vring`` if it runs; :func:`run_wanted` may let it go on where it was, unless it is found ``broken``."""
    if not vring.running:
        return
    stopped = yield StopRing(vring.index, drain=drain)
    assert isinstance(stopped, StoppedRing)
    broken |= stopped.broken
    vring.move(RingEvent.BREAK if broken else RingEvent.PAUSE)
    vring.base, vring.left_at, vring.resumes = stopped.base, stopped.base, True
    if broken:
        yield from need_reset(session)


def pause_all(session: Session) -> Effects:
    """Stop every ring that runs."""
    for vring in session.vrings:
        yield from pause(session, vring)


def run_wanted(session: Session, asked: Vring | None = None) -> Effects:
    """Bring every ring that should run and can run to running.

    A ring whose memory is missing is parked; the message is refused only if it asked for that ring.

    Raises:
        VhostUserError: ``asked`` cannot run.
    """
    set_up = {vring.index for vring in session.vrings if vring.is_set_up}
    running = {vring.index for vring in session.vrings if vring.running and vring.has_role}
    if session.queue_numbers.learn(set_up, running, negotiated=session.features, offered=session.offered):
        yield EmitEvent("queue_numbers", {"dialect": session.queue_numbers.dialect.value})
    for vring in session.vrings:
        if (vring.running and vring.has_role) or not vring.is_wanted:
            continue
        try:
            queue = session.queue_numbers.role(
                vring.index, set_up, negotiated=session.features, offered=session.offered
            )
        except VhostUserError as error:
            if not vring.running:
                yield from _park(vring, str(error))
            continue
        if queue is None:
            if vring.running:
                continue
            dialect = session.queue_numbers.dialect.value
            reason = f"there is no queue {vring.index} by the {dialect} numbers"
            yield EmitEvent("queue_unknown", {"queue": vring.index, "reason": reason})
        yield from pause(session, vring)
        if vring.state is RingState.BROKEN:
            continue
        try:
            start = _start_ring(session, vring, queue)
            yield start
        except VhostUserError as error:
            yield from _park(vring, str(error))
            if vring is asked and session.table.regions:
                raise RefusedDriver(str(error)) from error
            if vring is asked:  # its memory may still come
                raise
        else:
            session.is_quiet &= not vring.resumes
            session.balloon.poison_is_old = True
            vring.move(RingEvent.RUN)
            vring.parked, vring.signal_first, vring.recovers = None, False, False
            vring.log, vring.has_role = start.log, queue is not None
    yield from notify_config_change(session)


def relog(session: Session) -> Effects:
    """Log the writes of each running ring as the features and its address now say. The rings run on: a front-end
    switches logging at the start of a migration."""
    for vring in session.vrings:
        if vring.running and vring.log != (log := _log_of(session, vring)):
            yield LogRing(vring.index, log)
            vring.log = log


def _log_of(session: Session, vring: Vring) -> RingLog | None:
    if not session.features & LOG_ALL:
        return None
    return vring.log_places(session.table, packed=session.packed)


def _park(vring: Vring, reason: str) -> Effects:
    if reason != vring.parked:
        vring.parked = reason
        yield EmitEvent("queue_stopped", {"queue": vring.index, "reason": reason})


def _start_ring(session: Session, vring: Vring, queue: BalloonQueue | None) -> StartRing:
    features = session.features
    return StartRing(
        index=vring.index,
        queue=queue,
        place=vring.place(session.table, packed=session.packed),
        base=base_of(session, vring),
        signal_first=vring.signal_first,
        resumes=vring.resumes,
        recovers=vring.recovers,
        log=_log_of(session, vring),
        inband=session.has_protocol_feature(ProtocolFeature.INBAND_NOTIFICATIONS),
        features=RingFeatures(
            event_idx=has_feature(features, FeatureBit.RING_EVENT_IDX),
            indirect_desc=has_feature(features, FeatureBit.RING_INDIRECT_DESC),
            packed=has_feature(features, FeatureBit.RING_PACKED),
            in_order=has_feature(features, FeatureBit.IN_ORDER),
        ),
    )


def base_of(session: Session, vring: Vring) -> int:
    """Return the base from which ``vring`` goes on: 16 bits of a split ring, 32 bits of a packed one.

    What a packed base of 0 means only the ring itself can tell (:mod:`host.virtqueue.packed_virtqueue`).
    """
    return vring.base if session.packed else vring.base & 0xFFFF  # the upper bits are reserved


def ring_broke(session: Session, index: int) -> Effects:
    """The driver has broken the rules of ring ``index``: stop it until it is set up anew. The device needs a reset."""
    yield from pause(session, session.vrings[index], broken=True)
