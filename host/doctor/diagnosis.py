"""Why does nothing come back? The causes, from the facts of one virtual machine.

The way of a free page is followed from its beginning: bit, driver, queue, chains, discards, and what the host gains by
them. The first stage that is at fault explains why the later ones have seen nothing, so they are not judged then.
"""

from collections.abc import Callable, Iterator
from typing import Final

from host.doctor.facts import VmFacts
from host.doctor.finding import Cause, Finding
from host.doctor.shortage import find_notes, find_shortage
from protocol.units import format_size

PATIENCE: Final = 10.0
"""Seconds that a guest may take to boot its driver, and then to report: Linux waits for 2 s after a page was freed."""

ANSWER_PATIENCE: Final = 5.0
"""Seconds within which a guest gives its statistics."""

LEAST_REPORTED: Final = 64 << 20
"""Bytes from which on the host has to have gained something by reports."""

BALLOON_FEATURES: Final = frozenset(
    {"must-tell-host", "statistics", "deflate-on-oom", "free-page-hint", "page-poison", "page-reporting"}
)
"""The features of the device itself, which a front-end may mask."""

_REASONS: Final = {
    "empty": "they have no length",
    "unaligned": "they are not made of whole pages of the memory's file",
    "out_of_range": "they lie outside the memory that the front-end has shared",
    "crosses_regions": "they cross memory regions",
    "ring_memory": "they touch pages that hold a ring",
    "readable": "their buffers are device-readable, which a device must not change",
    "too_long": "their chains are too long",
    "stale_hint": "they belong to a hinting round that is over",
    "bad_command": "they carry a command that does not exist",
    "unknown_queue": "no numbering of queues knows the queue that they came on",
    "discard_failed": "the memory's file cannot be punched",
}

_WAS_SO: Final = frozenset({"discard_off", "inhibited", "poison"})
"""Reasons for a machine as a whole. While one holds it is a cause of its own."""


_NOT_SERVED: Final = Finding(
    Cause.NOT_SERVED,
    "The daemon's worker process for this guest does not answer; the facts shown are those of its last answer.",
    "A worker that hangs is killed after 10 s, and another one goes on; if it stays so, read the daemon's log.",
)


def diagnose(facts: VmFacts) -> list[Finding]:
    """Return the causes, the one to begin with first. A healthy machine has none that is a fault."""
    if not facts.is_served:
        return [_NOT_SERVED]
    findings = list(_find_silence(facts))
    for stage in _STAGES:
        if not (found := list(stage(facts))):
            continue
        findings += found
        if any(finding.is_fault for finding in found):
            return findings
    return [*findings, *find_notes(facts)]


def is_healthy(findings: list[Finding]) -> bool:
    """Return whether there is nothing to mend."""
    return not any(finding.is_fault for finding in findings)


def _find_silence(facts: VmFacts) -> Iterator[Finding]:
    # In parallel to the stages: a process that stands still keeps the state that it was in.
    if facts.front_end == "stopped":
        yield Finding(
            Cause.FRONT_END_STUCK,
            "The front-end's process is stopped (SIGSTOP, a debugger, the cgroup freezer).",
            "Let it go on: kill -CONT, or thaw its cgroup.",
        )
    elif facts.front_end == "blocked":
        yield Finding(
            Cause.FRONT_END_STUCK,
            "The front-end holds up calls on its memory's file (a lock, a snapshot, a file system that hangs).",
            "Look at what its threads wait for in /proc/PID/task/*/stack; balloonctl disconnect ends the session.",
        )
    elif facts.unanswered > ANSWER_PATIENCE:
        yield Finding(
            Cause.GUEST_SILENT,
            f"The guest has not answered a request for statistics for {facts.unanswered:.0f} s: it is paused or hangs.",
            "Resume it (QEMU: cont); if it runs, look at its console.",
        )


def _find_bit(facts: VmFacts) -> Iterator[Finding]:
    if "page-reporting" not in facts.offered:
        yield Finding(
            Cause.NOT_OFFERED,
            "This daemon does not offer free page reporting (VIRTIO_BALLOON_F_REPORTING).",
            "Start it without page-reporting=off in --features, and with a personality that offers it.",
        )
    elif not facts.has_features and facts.age > PATIENCE:
        yield Finding(
            Cause.NO_DRIVER,
            f"No driver has taken the device in {facts.age:.0f} s: the guest is still booting, or has none.",
            "Load virtio_balloon in the guest (CONFIG_VIRTIO_BALLOON); lspci there shows whether it sees the device.",
        )


def _find_negotiation(facts: VmFacts) -> Iterator[Finding]:
    if not facts.has_features or "page-reporting" in facts.features:
        return
    if not facts.features & BALLOON_FEATURES and facts.offered & BALLOON_FEATURES - {"page-reporting"}:
        yield Finding(
            Cause.NOT_NEGOTIATED,
            "Not one balloon feature reached the driver: the front-end masks the device's feature bits.",
            "Use a front-end that passes them on: QEMU 10.2 or newer (vhost-user-test-device-pci), User Mode Linux.",
        )
        return
    poison = "page-poison" not in facts.offered
    yield Finding(
        Cause.NOT_NEGOTIATED,
        "The guest's driver has not accepted free page reporting, which was offered to it.",
        "Use a kernel with CONFIG_PAGE_REPORTING (Linux 5.7 or newer)"
        + (", and offer page-poison=on to one that poisons pages." if poison else "."),
    )


def _find_driver(facts: VmFacts) -> Iterator[Finding]:
    if not facts.has_features:
        return
    failed = facts.status is not None and "FAILED" in facts.status
    late = facts.status is not None and "DRIVER_OK" not in facts.status and facts.age > PATIENCE
    if failed or (late and not facts.driver_ready):
        said = "given up: it has set FAILED in the device status"
        if not failed:
            said = f"accepted features, and has not become ready in {facts.age:.0f} s"
        yield Finding(
            Cause.PROBE_FAILED,
            f"The guest's driver has {said}.",
            "Read dmesg in the guest: virtio_balloon names the error; too few queues is the usual one (num_vqs=5).",
        )
    elif not facts.driver_ready and facts.age > PATIENCE and _rests(facts):
        yield Finding(
            Cause.NO_DRIVER,
            "The device is at rest: the guest is paused, or its driver has left.",
            "Resume the guest (QEMU: cont), or load virtio_balloon in it again.",
        )


def _rests(facts: VmFacts) -> bool:
    return all(queue.state in ("stopped", "started") and queue.why is None for queue in facts.queues.values())


def _find_queue(facts: VmFacts) -> Iterator[Finding]:
    queue = facts.reporting
    if not facts.has_features:
        return
    if queue.state == "broken":
        yield Finding(
            Cause.RING_BROKEN,
            f"The reporting queue is broken: {queue.why or 'the driver broke a rule of its ring'}.",
            "Reload the driver (rmmod virtio_balloon; modprobe virtio_balloon) or reset the guest; report the driver.",
        )
    elif queue.set_up and queue.state != "running" and queue.why is not None:
        yield Finding(
            Cause.QUEUE_WAITS,
            f"The reporting queue cannot run: {queue.why}.",
            "Have the front-end share all of the guest's memory; --queue-numbers settles a doubt about its number.",
        )
    elif queue.state == "stopped" and facts.driver_ready:
        yield Finding(
            Cause.QUEUE_NOT_SET_UP,
            "Free page reporting is negotiated, but the front-end has not set its queue up.",
            "Give the device all queues (QEMU: num_vqs=5), or set --queue-numbers to what the driver uses.",
        )


def _find_keeping(facts: VmFacts) -> Iterator[Finding]:
    if facts.inhibited_by is not None:
        yield Finding(
            Cause.INHIBITED,
            f"Discards of this machine are inhibited by the {facts.inhibited_by}: {facts.inhibited_why}.",
            "When that is over: balloonctl allow VM."
            if facts.inhibited_by == "operator"
            else "They go on by themselves when that is over; balloonctl allow --force VM if you know better.",
        )
    elif facts.kept_by == "discard_off":
        yield Finding(
            Cause.DISCARD_OFF,
            "The daemon runs with --discard none: it acknowledges reports and keeps every page.",
            "Restart it with --discard punch, unless the memory is pinned or must stay.",
        )
    elif facts.kept_by == "poison":
        yield Finding(
            Cause.POISON,
            "The guest fills free pages with a pattern (page poisoning), and a discarded page would read as zeros.",
            "Boot the guest without page_poison=1 (init_on_free=1 is fine: its pattern is zero).",
        )


def _find_refusal(facts: VmFacts) -> Iterator[Finding]:
    kept = {reason: size for reason, size in facts.refused.items() if reason not in _WAS_SO}
    if facts.reported == 0 or not kept:
        return
    reason, size = max(kept.items(), key=lambda item: item[1])
    if facts.discarded == 0:
        yield _all_refused(facts, reason)
    elif size * 10 > facts.reported:
        yield Finding(
            Cause.PARTLY_REFUSED,
            f"{format_size(size)} of {format_size(facts.reported)} that were reported were kept: {_why(reason)}.",
            "balloonctl show VM has the reasons; the events have each range.",
        )


def _all_refused(facts: VmFacts, reason: str) -> Finding:
    if reason == "discard_failed":
        return Finding(
            Cause.CANNOT_PUNCH,
            f"The file of the guest's memory cannot be punched ({facts.punch_error or 'fallocate fails'}).",
            "Back the memory by memfd, tmpfs or hugetlbfs without a write seal (QEMU: memory-backend-memfd,share=on).",
        )
    if reason == "unaligned" and facts.page_size > max(facts.mean_range, 4096):
        return Finding(
            Cause.HUGE_PAGES,
            f"The memory is in huge pages of {format_size(facts.page_size)}, and the guest reports blocks of "
            f"{format_size(facts.mean_range)}.",
            "Use huge pages that are no larger than these blocks, or raise page_reporting_order in the guest.",
        )
    return Finding(
        Cause.ALL_REFUSED,
        f"Every range that was reported was refused: {_why(reason)}.",
        "The events (--events) have each refusal with its address; balloon-check judges drivers.",
    )


def _why(reason: str) -> str:
    return _REASONS.get(reason, reason)


def _find_backing(facts: VmFacts) -> Iterator[Finding]:
    # MEMTOT has the balloon's pages in it where the driver may deflate by itself (DEFLATE_ON_OOM).
    total = facts.statistics.get("memtot", 0)
    used = total - facts.statistics.get("memfree", 0) - facts.balloon
    if facts.backed is None or used < LEAST_REPORTED or not facts.statistics_are_sound:
        return
    if facts.statistics_age is None or (facts.last_report is not None and facts.last_report < facts.statistics_age):
        return  # what was in use then may have been given back since
    # What a guest uses it need not have touched: its pool of huge pages, for example. But its kernel has written what
    # it keeps of each page, 64 bytes (struct page), and a file that is mapped privately has not even that.
    if facts.backed < min(used // 4, total // 64):
        yield Finding(
            Cause.PRIVATE_MEMORY,
            f"The guest uses {format_size(used)}, and its file holds {format_size(facts.backed)}: the front-end has "
            "mapped it privately.",
            "Share the memory (QEMU: share=on): discards reach the file alone.",
        )


_STAGES: Final[tuple[Callable[[VmFacts], Iterator[Finding]], ...]] = (
    _find_bit,
    _find_negotiation,
    _find_driver,
    _find_queue,
    _find_keeping,
    _find_refusal,
    _find_backing,
    find_shortage,
)
