"""The metrics: their names, what they mean, and where their values are in the answers of the control socket.

Base units, ``_total`` for counters, one prefix. The guests' memory has the words of KubeVirt's metrics
(``kubevirt_vmi_memory_unused_bytes``, ...), and each guest the label ``domain``, as libvirt's exporters have it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

Entry = Mapping[str, Any]

PREFIX: Final = "vhost_user_balloon_"


class Metric(NamedTuple):
    """One metric of each guest. ``value`` takes it from an entry of ``query-vms``, None where the guest has none."""

    name: str
    help: str
    value: Callable[[Entry], float | None]
    is_counter: bool = False


def _of(name: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry[name]


def _said(name: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry["statistics"].get(name)


GUEST: Final = (
    Metric("memory_domain_bytes", "Memory of the guest.", _of("guest-memory")),
    Metric("memory_actual_balloon_bytes", "Memory that its balloon leaves the guest.", _of("guest-actual")),
    Metric("memory_target_bytes", "Memory that its balloon shall leave the guest.", _of("guest-target")),
    Metric("host_backed_bytes", "Memory that the host holds for the guest's memory.", _of("host-backed")),
    Metric("memory_unused_bytes", "Free memory, as the guest says.", _said("memfree")),
    Metric("memory_available_bytes", "Total memory, as the guest says.", _said("memtot")),
    Metric("memory_usable_bytes", "Memory that new applications of the guest can have, as it says.", _said("avail")),
    Metric("memory_cached_bytes", "Page cache of the guest, as it says.", _said("caches")),
    Metric("pgmajfault_total", "Major page faults of the guest, as it says.", _said("majflt"), is_counter=True),
    Metric("pgminfault_total", "Minor page faults of the guest, as it says.", _said("minflt"), is_counter=True),
    Metric("swap_in_bytes_total", "Memory that the guest swapped in, as it says.", _said("swap_in"), is_counter=True),
    Metric(
        "swap_out_bytes_total", "Memory that the guest swapped out, as it says.", _said("swap_out"), is_counter=True
    ),
    Metric("oom_kills_total", "Processes that the guest killed out of memory.", _said("oom_kill"), is_counter=True),
    Metric("statistics_age_seconds", "Age of the guest's statistics.", _of("statistics-age")),
    Metric("reports_total", "Free page reports.", _of("reports"), is_counter=True),
    Metric("reported_bytes_total", "Memory in free page reports.", _of("reported-bytes"), is_counter=True),
    Metric(
        "discarded_bytes_total",
        "Memory that was given back to the host: reported, inflated or hinted.",
        _of("discarded-bytes"),
        is_counter=True,
    ),
    Metric(
        "refaulted_bytes_total",
        "Memory that the host holds again after it had been given back, as seen from scrape to scrape.",
        _of("refaulted-bytes"),
        is_counter=True,
    ),
    Metric("inflated_bytes_total", "Memory that entered the balloon.", _of("inflated-bytes"), is_counter=True),
    Metric("deflated_bytes_total", "Memory that left the balloon.", _of("deflated-bytes"), is_counter=True),
    Metric("hinted_bytes_total", "Memory in free page hints.", _of("hinted-bytes"), is_counter=True),
    Metric("last_report_age_seconds", "Time since the last free page report.", _of("last-report")),
    Metric("healthy", "1 if nothing is wrong with the guest, see balloonctl doctor.", lambda entry: not _faults(entry)),
)


def _faults(entry: Entry) -> list[str]:
    return [cause for cause in entry["health"] if cause not in NOTES]


NOTES: Final = frozenset({"partly-refused", "page-cache", "guest-busy"})
"""Causes of ``health`` that are no faults: :data:`host.doctor.finding.NOTES`."""

REFUSED: Final = "refused_bytes_total"
CAUSE: Final = "health_cause"
INHIBITED: Final = "inhibited"
INFO: Final = "guest_info"
GUESTS: Final = "guests"
SESSIONS: Final = "sessions_total"
UPTIME: Final = "uptime_seconds"
RESTARTS: Final = "worker_restarts_total"
BUILD: Final = "build_info"
DISCARD: Final = "discard_seconds"
ACKNOWLEDGE: Final = "acknowledge_seconds"

OTHERS: Final[Mapping[str, str]] = {
    REFUSED: "Memory that was named and kept, by reason.",
    CAUSE: "1 for each cause that balloonctl doctor finds.",
    INHIBITED: "1 while discards are inhibited, by whom.",
    INFO: "1; its labels tell which guest this is.",
    GUESTS: "Guests that are connected.",
    SESSIONS: "Sessions so far.",
    UPTIME: "Time since the daemon began.",
    RESTARTS: "Worker processes that were replaced.",
    BUILD: "1; its label tells the version.",
    DISCARD: "Time that the discards of one chain took, of all guests.",
    ACKNOWLEDGE: "Time from taking a chain to giving it back, of all guests.",
}
"""The other metrics, and what they mean."""


def domains(entries: Sequence[Entry]) -> list[str]:
    """Return the label of each guest: its name where only one has it, otherwise with its number."""
    names = [str(entry["name"]) for entry in entries]
    return [
        name if name and names.count(name) == 1 else f"{name or 'vm'}-{entry['vm']}"
        for name, entry in zip(names, entries, strict=True)
    ]
