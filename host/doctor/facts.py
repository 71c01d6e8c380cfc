"""The facts about one virtual machine that a diagnosis is made from, read from its entry in ``query-vms``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, kw_only=True)
class QueueFacts:
    """One queue. ``state`` is that of :class:`host.vhost_user.vring.RingState`, ``set_up`` says that it has a size and
    addresses, ``why`` is the reason of a ring that is broken or cannot run, ``running_for`` is the time since its ring
    began to run, in seconds, None while it does not."""

    state: str = "stopped"
    set_up: bool = False
    why: str | None = None
    running_for: float | None = None


ABSENT = QueueFacts()
"""A queue that the driver has not set up."""


@dataclass(slots=True, kw_only=True)
class VmFacts:
    """What is known of one virtual machine. Sizes are bytes, times are seconds, None is what cannot be known.

    ``offered`` and ``features`` are names of feature bits. ``has_features`` says that a driver has accepted some, if
    only none of them. ``status`` has the names of the device status, None for a front-end that keeps it to itself.
    ``backed`` is what the host holds for the memory. ``page_size`` is the largest of the files below it, and
    ``mean_range`` the average range of all reports. ``refused`` is bytes by reason, ``kept_by`` why every page is kept,
    with ``inhibited_by`` (``operator`` or ``daemon``) and ``inhibited_why``. ``punch_error`` is the last error of a
    discard.
    ``statistics`` are the guest's own, ``statistics_age`` old; ``unanswered`` is how long it has owed an answer to a
    request for them.
    ``front_end`` is the state of its process: ``running``, ``stopped``, ``blocked``, ``gone``, or None.
    Without ``is_served`` its worker does not answer, and the facts are old.
    """

    age: float = 0.0
    memory: int = 0
    guest_memory: int = 0
    backed: int | None = None
    balloon: int = 0
    offered: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    has_features: bool = False
    driver_ready: bool = False
    status: frozenset[str] | None = None
    queues: Mapping[str, QueueFacts] = field(default_factory=dict)
    page_size: int = 4096
    reports: int = 0
    reported: int = 0
    discarded: int = 0
    mean_range: int = 0
    last_report: float | None = None
    refused: Mapping[str, int] = field(default_factory=dict)
    kept_by: str | None = None
    inhibited_by: str | None = None
    inhibited_why: str = ""
    punch_error: str | None = None
    statistics: Mapping[str, int] = field(default_factory=dict)
    statistics_age: float | None = None
    unanswered: float = 0.0
    front_end: str | None = None
    is_served: bool = True

    @property
    def statistics_are_sound(self) -> bool:
        """Whether the guest's statistics can be true: a guest may send any value, and what it says of memory that it
        does not have proves nothing."""
        total, free = self.statistics.get("memtot", self.memory), self.statistics.get("memfree")
        parts = (free or 0, self.statistics.get("caches", 0), self.statistics.get("avail", 0))
        return free is not None and max(parts) <= total <= self.memory

    @property
    def reporting(self) -> QueueFacts:
        """The queue of free page reports."""
        return self.queues.get("reporting", ABSENT)


def read_facts(entry: Mapping[str, Any]) -> VmFacts:
    """Return the facts of one entry of ``query-vms``."""
    status = entry.get("status")
    inhibited = entry.get("inhibited") or {}
    return VmFacts(
        age=entry["age"],
        memory=entry["memory"],
        guest_memory=entry["guest-memory"],
        backed=entry["host-backed"],
        balloon=entry["balloon-actual"],
        offered=frozenset(entry["offered"]),
        features=frozenset(entry["features"]),
        has_features=entry["ring"] is not None,
        driver_ready=entry["driver-ready"],
        status=None if status is None else frozenset(status),
        queues={name: _queue(queue) for name, queue in entry["queues"].items()},
        page_size=entry["page-size"],
        reports=entry["reports"],
        reported=entry["reported-bytes"],
        discarded=entry["discarded-bytes"],
        mean_range=entry["mean-range"],
        last_report=entry["last-report"],
        refused=entry["refused-bytes"],
        kept_by=entry["keeps-pages"],
        inhibited_by=inhibited.get("by"),
        inhibited_why=inhibited.get("why", ""),
        punch_error=entry["discard-error"],
        statistics=entry["statistics"],
        statistics_age=entry["statistics-age"],
        unanswered=entry["statistics-unanswered"],
        front_end=entry["front-end"],
        is_served="broken" not in entry,
    )


def _queue(queue: Mapping[str, Any]) -> QueueFacts:
    return QueueFacts(
        state=queue["state"],
        set_up=queue["set-up"],
        why=queue["why"],
        running_for=queue["running-for"],
    )
