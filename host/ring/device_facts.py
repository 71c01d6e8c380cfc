"""How far a driver has come with its device, for ``query-vms``: the device status, and the state of each queue."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from host.ring.ring_service import RingService
from host.vhost_user.session import Session
from host.vhost_user.vring import RingState, Vring
from protocol.errors import VhostUserError
from protocol.vhost_user import ProtocolFeature


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue. ``set_up`` says that it has a size and addresses, ``why`` is the reason of a ring that is broken or
    cannot run, ``began`` is when it began to run (CLOCK_MONOTONIC, seconds), None if it does not."""

    index: int
    state: RingState
    set_up: bool
    why: str | None = None
    began: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """``offered`` are feature bits, ``status`` the device status, None where the front-end keeps it to itself.
    ``queues`` has those that were set up, by name, ``discard_error`` is the errno of the last discard that failed."""

    offered: int = 0
    status: int | None = None
    queues: Mapping[str, QueueStatus] = field(default_factory=dict)
    discard_error: int = 0


def device_facts(session: Session, services: Mapping[int, RingService], broken: Mapping[int, str]) -> DeviceFacts:
    """Return the facts of a session: its rings are served by ``services``, and ``broken`` has why rings broke, both by
    index."""
    queues: dict[str, QueueStatus] = {}
    for vring in session.vrings:
        if vring.started or vring.is_set_up:
            service = services.get(vring.index)
            why = broken.get(vring.index) if vring.state is RingState.BROKEN else vring.parked
            queues[_name_of(session, vring, service)] = QueueStatus(
                vring.index, vring.state, vring.is_set_up, why, None if service is None else service.began
            )
    status = session.status if session.has_protocol_feature(ProtocolFeature.STATUS) else None
    errors = [service.discard_error for service in services.values() if service.discard_error]
    return DeviceFacts(session.offered, status, queues, errors[-1] if errors else 0)


def _name_of(session: Session, vring: Vring, service: RingService | None) -> str:
    if service is not None and service.queue is not None:
        return service.queue.value
    set_up = {each.index for each in session.vrings if each.is_set_up}
    try:
        role = session.queue_numbers.role(vring.index, set_up, negotiated=session.features, offered=session.offered)
    except VhostUserError:  # that is not known yet
        role = None
    return f"queue-{vring.index}" if role is None else role.value
