"""The facts about one virtual machine: values alone, while :mod:`host.control.vm_control` acts on it."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from host.balloon.offered_features import feature_names
from host.doctor.diagnosis import diagnose
from host.doctor.facts import read_facts
from host.events.latency import Latency
from host.inhibition.inhibition import NO_SIGNS, Inhibition, Sign
from host.ring.device_facts import DeviceFacts, QueueStatus
from host.vhost_user.device_setup import DeviceSetup
from protocol.memory import PAGE_SIZE
from protocol.virtio import DeviceStatus
from protocol.virtio_balloon import PFN_SHIFT


@dataclass(slots=True, kw_only=True)
class VmInfo:
    """What is known of one virtual machine.

    ``memory_bytes`` is the sum of its memory regions, ``guest_bytes`` how much of that is taken for its RAM.
    ``num_pages`` is the size that its balloon should have, ``target_pages`` the size that was asked for, which its
    memory may bound, and ``actual`` the size that the driver says it has, in 4096-byte pages. ``features`` are the
    negotiated feature bits. ``driver_ready`` says that a driver is at work, ``setup`` how it has set the device up, and
    ``device`` how far it has come. ``name`` is for display, ``age`` the session's in seconds, ``now`` CLOCK_MONOTONIC.
    The counters are sums since it began, sizes are bytes, ``refused`` counts ranges by reason, ``mean_range`` is the
    average of all reports. ``last_report`` is the age of the last report in seconds, None without.

    ``page_size`` is that of the largest pages below the memory, in bytes. ``keeps_pages`` is why no page is discarded,
    ``inhibition`` what keeps them if that is it. ``signs`` is what the front-end's process shows. ``refaulted_bytes``
    came back, see :class:`host.control.backed_memory.Refaults`. ``statistics`` are ``statistics_age`` seconds old, and
    ``unanswered`` is how long the guest has owed newer ones.
    """

    pid: int
    name: str
    age: float
    memory_bytes: int
    guest_bytes: int
    num_pages: int
    target_pages: int
    actual: int
    features: int
    driver_ready: bool
    setup: DeviceSetup
    now: float = 0.0
    reports: int = 0
    reported_bytes: int = 0
    mean_range: int = 0
    discarded_bytes: int = 0
    inflated_pages: int = 0
    deflated_pages: int = 0
    hinted_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    refused_bytes: Mapping[str, int] = field(default_factory=dict)
    acknowledge: Latency = field(default_factory=Latency)
    discard: Latency = field(default_factory=Latency)
    last_report: float | None = None
    device: DeviceFacts = field(default_factory=DeviceFacts)
    page_size: int = PAGE_SIZE
    keeps_pages: str | None = None
    inhibition: Inhibition | None = None
    signs: Sign = NO_SIGNS
    refaulted_bytes: int = 0
    statistics: Mapping[str, int] = field(default_factory=dict)
    statistics_age: float | None = None
    unanswered: float = 0.0

    @property
    def guest_actual(self) -> int:
        """The bytes that the guest has beside its balloon."""
        return logical_size(self.guest_bytes, self.actual)


def logical_size(memory_bytes: int, pages: int) -> int:
    """Return the bytes that a guest has beside a balloon of ``pages`` 4096-byte pages, 0 if it claims more than it
    has."""
    return max(memory_bytes - (pages << PFN_SHIFT), 0)


def describe(vm: int, info: VmInfo, backed_bytes: int | None) -> dict[str, object]:
    """Return the entry of a virtual machine in ``query-vms``. ``health`` has the names of what is wrong with it, which
    :mod:`host.doctor` explains."""
    entry = _describe_setup(vm, info, backed_bytes) | _describe_state(info, backed_bytes) | _describe_traffic(info)
    entry["health"] = [finding.cause.value for finding in diagnose(read_facts(entry))]
    return entry


def _describe_setup(vm: int, info: VmInfo, backed_bytes: int | None) -> dict[str, object]:
    return {
        "vm": vm,
        "pid": info.pid,
        "name": info.name,
        "age": round(info.age, 3),
        "memory": info.memory_bytes,
        "page-size": info.page_size,
        "host-backed": backed_bytes,
        "guest-memory": info.guest_bytes,
        "guest-target": logical_size(info.guest_bytes, info.num_pages),
        "guest-actual": info.guest_actual,
        "balloon-requested": info.target_pages << PFN_SHIFT,
        "balloon-target": info.num_pages << PFN_SHIFT,
        "balloon-actual": info.actual << PFN_SHIFT,
        "offered": feature_names(info.device.offered),
        "features": feature_names(info.features),
        "driver-ready": info.driver_ready,
        "ring": info.setup.ring,
        "queue-numbers": info.setup.queue_numbers.value,
        "kicks": {queue.value: method for queue, method in info.setup.kicks.items()},
        "queues": {name: _describe_queue(queue, info.now) for name, queue in info.device.queues.items()},
    }


def _describe_queue(queue: QueueStatus, now: float) -> dict[str, object]:
    return {
        "number": queue.index,
        "state": queue.state.value,
        "set-up": queue.set_up,
        "why": queue.why,
        "running-for": None if queue.began is None else round(max(now - queue.began, 0.0), 3),
    }


def _describe_state(info: VmInfo, backed_bytes: int | None) -> dict[str, object]:
    status, inhibition, error = info.device.status, info.inhibition, info.device.discard_error
    return {
        "status": None if status is None else list(_status_names(status)),
        "front-end": _front_end(info, backed_bytes),
        "descriptors-seen": Sign.UNSEEN not in info.signs,
        "keeps-pages": info.keeps_pages,
        "inhibited": None if inhibition is None else {"by": inhibition.by.value, "why": inhibition.why},
        "discard-error": errno.errorcode.get(error, str(error)) if error else None,
        "statistics": dict(info.statistics),
        "statistics-age": None if info.statistics_age is None else round(info.statistics_age, 3),
        "statistics-unanswered": round(info.unanswered, 3),
    }


@lru_cache(maxsize=256)
def _status_names(status: int) -> tuple[str, ...]:
    return tuple(str(bit.name) for bit in DeviceStatus if status & bit)


def _front_end(info: VmInfo, backed_bytes: int | None) -> str | None:
    if Sign.STOPPED in info.signs:
        return "stopped"
    if info.memory_bytes and backed_bytes is None:
        return "blocked"
    if info.pid <= 0:
        return None
    return "gone" if Sign.GONE in info.signs else "running"


def _describe_traffic(info: VmInfo) -> dict[str, object]:
    return {
        "reports": info.reports,
        "reported-bytes": info.reported_bytes,
        "mean-range": info.mean_range,
        "discarded-bytes": info.discarded_bytes,
        "refused": dict(info.refused),
        "refused-bytes": dict(info.refused_bytes),
        "inflated-bytes": info.inflated_pages << PFN_SHIFT,
        "deflated-bytes": info.deflated_pages << PFN_SHIFT,
        "hinted-bytes": info.hinted_bytes,
        "refaulted-bytes": info.refaulted_bytes,
        "last-report": None if info.last_report is None else round(info.last_report, 3),
        "acknowledge": _describe_latency(info.acknowledge),
        "discard": _describe_latency(info.discard),
    }


def _describe_latency(latency: Latency) -> dict[str, object]:
    return {"counts": latency.counts, "seconds": round(latency.seconds, 6)}
