"""Each cause is recognised from the facts that it leaves, and a machine that works is called healthy."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from host.doctor.diagnosis import diagnose, is_healthy
from host.doctor.facts import QueueFacts, VmFacts
from host.doctor.finding import Cause

MIB = 1 << 20
GIB = 1 << 30

RUNNING = QueueFacts(state="running", set_up=True, running_for=60.0)

HEALTHY = VmFacts(
    age=60.0,
    memory=2 * GIB,
    guest_memory=2 * GIB,
    backed=400 * MIB,
    offered=frozenset({"page-reporting", "statistics", "deflate-on-oom"}),
    features=frozenset({"page-reporting", "statistics"}),
    has_features=True,
    driver_ready=True,
    status=frozenset({"ACKNOWLEDGE", "DRIVER", "FEATURES_OK", "DRIVER_OK"}),
    queues={"reporting": RUNNING},
    reports=40,
    reported=1600 * MIB,
    discarded=1600 * MIB,
    mean_range=4 * MIB,
    last_report=3.0,
    statistics={"memtot": 2 * GIB, "memfree": 1600 * MIB, "caches": 50 * MIB, "avail": 1640 * MIB},
    statistics_age=1.0,
    front_end="running",
)


def reporting(**facts: Any) -> dict[str, dict[str, QueueFacts]]:
    """Return the facts of a machine with another reporting queue."""
    return {"queues": {"reporting": replace(RUNNING, **facts)}}


NO_REPORT: dict[str, Any] = {"reports": 0, "reported": 0, "discarded": 0, "mean_range": 0, "last_report": None}


def refused(reason: str) -> dict[str, Any]:
    """Return the facts of a machine whose reports were all refused."""
    return {"discarded": 0, "refused": {reason: 1600 * MIB}}


def memory(free: int, caches: int, avail: int) -> dict[str, dict[str, int]]:
    """Return statistics in MiB of a guest with 2 GiB."""
    sizes = {"memfree": free * MIB, "caches": caches * MIB, "avail": avail * MIB}
    return {"statistics": {"memtot": 2 * GIB, **sizes}}


CASES: list[tuple[Cause, str, dict[str, Any]]] = [
    (Cause.NOT_SERVED, "does not answer", {"is_served": False}),
    (Cause.FRONT_END_STUCK, "process is stopped", {"front_end": "stopped"}),
    (Cause.FRONT_END_STUCK, "holds up calls", {"front_end": "blocked", "backed": None}),
    (Cause.GUEST_SILENT, "has not answered", {"unanswered": 7.0}),
    (Cause.NOT_OFFERED, "does not offer", {"offered": frozenset({"statistics"}), "features": frozenset()}),
    (
        Cause.NO_DRIVER,
        "No driver has taken the device in 60 s",
        {"has_features": False, "features": frozenset(), "queues": {}, "driver_ready": False, "status": None},
    ),
    (
        Cause.NO_DRIVER,
        "The device is at rest",
        {"driver_ready": False, "status": None, **reporting(state="started", running_for=None)},
    ),
    (Cause.NOT_NEGOTIATED, "front-end masks", {"features": frozenset({"indirect", "event-idx"})}),
    (Cause.NOT_NEGOTIATED, "driver has not accepted", {"features": frozenset({"statistics"})}),
    (Cause.PROBE_FAILED, "has set FAILED", {"status": frozenset({"FAILED"})}),
    (
        Cause.PROBE_FAILED,
        "has not become ready in 60 s",
        {"status": frozenset({"DRIVER", "FEATURES_OK"}), "driver_ready": False, "queues": {}},
    ),
    (Cause.QUEUE_NOT_SET_UP, "has not set its queue up", {"queues": {}, **NO_REPORT}),
    (
        Cause.QUEUE_WAITS,
        "used ring of queue 2, 260 bytes",
        reporting(state="started", why="used ring of queue 2, 260 bytes at 0x1000, is not in one memory region"),
    ),
    (Cause.RING_BROKEN, "descriptor 7 follows itself", reporting(state="broken", why="descriptor 7 follows itself")),
    (
        Cause.INHIBITED,
        "by the operator: postcopy",
        {"inhibited_by": "operator", "inhibited_why": "postcopy", "kept_by": "discard_off"},
    ),
    (
        Cause.INHIBITED,
        "by the daemon: the front-end has a VFIO device",
        {"inhibited_by": "daemon", "inhibited_why": "the front-end has a VFIO device", "kept_by": "discard_off"},
    ),
    (Cause.DISCARD_OFF, "--discard none", {"kept_by": "discard_off"}),
    (Cause.POISON, "pattern", {"kept_by": "poison"}),
    (Cause.CANNOT_PUNCH, "EPERM", {**refused("discard_failed"), "punch_error": "EPERM"}),
    (Cause.HUGE_PAGES, "huge pages of 1.0 GiB", {**refused("unaligned"), "page_size": GIB}),
    (Cause.ALL_REFUSED, "outside the memory", refused("out_of_range")),
    (Cause.ALL_REFUSED, "whole pages", refused("unaligned")),
    (Cause.PRIVATE_MEMORY, "mapped it privately", {"backed": 3 * MIB}),
    (Cause.ORDER_TOO_LARGE, "less than one report may take", {**NO_REPORT, **memory(700, 50, 750)}),
    (Cause.NEVER_KICKED, "60 s without a report, with 1.6 GiB free", NO_REPORT),
    (Cause.NEVER_KICKED, "60 s without a report.", {**NO_REPORT, "statistics": {}}),
]


@pytest.mark.parametrize(("cause", "text", "facts"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_causes(cause: Cause, text: str, facts: dict[str, Any]) -> None:
    """The cause comes first, in one sentence, with a remedy that is one too."""
    findings = diagnose(replace(HEALTHY, **facts))
    assert findings[0].cause is cause
    assert text in findings[0].sentence
    assert findings[0].is_fault
    assert findings[0].sentence.endswith(".")
    assert len(findings[0].remedy) > 20
    assert not is_healthy(findings)


@pytest.mark.parametrize(
    ("cause", "facts"),
    [
        (Cause.PARTLY_REFUSED, {"discarded": 1200 * MIB, "refused": {"unaligned": 400 * MIB}}),
        (Cause.PAGE_CACHE, {**memory(100, 1500, 1600), "backed": 2 * GIB}),
        (Cause.GUEST_BUSY, {**memory(100, 100, 150), "backed": 2 * GIB}),
        (Cause.GUEST_BUSY, {**memory(100, 1500, 150), "backed": 2 * GIB}),  # a tmpfs
        (Cause.GUEST_BUSY, {**NO_REPORT, **memory(30, 20, 40), "backed": 2 * GIB}),
    ],
)
def test_machine_that_works_may_hold_its_memory(cause: Cause, facts: dict[str, Any]) -> None:
    findings = diagnose(replace(HEALTHY, **facts))
    assert [finding.cause for finding in findings] == [cause]
    assert is_healthy(findings)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"status": None},
        {"refused": {"ring_memory": 8192}},
        {"refused": {"poison": 800 * MIB}},
        {"statistics": {}},
        # Statistics from before the last report do not tell what is in use now.
        {"backed": 3 * MIB, "statistics_age": 60.0},
        {"backed": 3 * MIB, "statistics_age": None},
        # It has only begun: there is no verdict yet.
        {"age": 3.0, "has_features": False, "features": frozenset(), "queues": {}, "driver_ready": False},
        {"age": 3.0, **NO_REPORT, **reporting(running_for=1.0)},
    ],
)
def test_healthy(facts: dict[str, Any]) -> None:
    assert diagnose(replace(HEALTHY, **facts)) == []


def test_remedy_for_the_page_cache_is_a_balloon() -> None:
    """A reclaim takes free memory, which is not what the page cache is."""
    facts: dict[str, Any] = {**memory(100, 1500, 1600), "backed": 2 * GIB}
    (finding,) = diagnose(replace(HEALTHY, **facts))
    assert finding.remedy_for("b:7").startswith("A balloon makes the guest give it up: balloonctl set b:7 SIZE, with")
    assert "the 448.0 MiB that its programs use" in finding.remedy


def test_every_cause_has_a_case() -> None:
    notes = {Cause.PARTLY_REFUSED, Cause.PAGE_CACHE, Cause.GUEST_BUSY}
    assert {case[0] for case in CASES} | notes == set(Cause)


def test_remedies_for_a_report_that_takes_too_much_are_those_of_the_page_sizes() -> None:
    """How large the guest's pages are the device is not told."""
    for free, begins, says, says_not in (
        (100, "Boot the guest with", "page_reporting_order", "16 KiB"),
        (700, "Pages of 16 KiB: Boot the guest", "Pages of 4 KiB: Free some memory", "64 KiB"),
        (1500, "Free some memory in the guest", "Pages of 64 KiB", "16 KiB"),
    ):
        facts: dict[str, Any] = {**NO_REPORT, **memory(free, 10, 1700), "backed": 600 * MIB}
        (finding,) = diagnose(replace(HEALTHY, **facts))
        assert finding.remedy.startswith(begins)
        assert says in finding.remedy
        assert says_not not in finding.remedy


def test_pages_that_a_guest_has_reserved_and_not_touched_are_not_missed_in_the_file() -> None:
    """A pool of huge pages (vm.nr_hugepages) is no free memory, and nothing was written to it."""
    with_pool = {"memtot": 4 * GIB, "memfree": 700 * MIB, "avail": 700 * MIB, "caches": 50 * MIB}
    reserved = replace(HEALTHY, memory=4 * GIB, guest_memory=4 * GIB, statistics=with_pool)
    assert is_healthy(diagnose(replace(reserved, backed=150 * MIB)))
    assert diagnose(replace(reserved, backed=1 * MIB))[0].cause is Cause.PRIVATE_MEMORY


def test_pages_of_the_balloon_are_not_missed_in_the_file() -> None:
    """MEMTOT may count them, and the file has none of them."""
    ballooned = replace(HEALTHY, balloon=1500 * MIB, backed=20 * MIB)
    full = {**HEALTHY.statistics, "memfree": 500 * MIB}
    assert is_healthy(diagnose(replace(ballooned, statistics=full)))
    assert diagnose(replace(ballooned, balloon=0, statistics=full))[0].cause is Cause.PRIVATE_MEMORY


ABSURD = (0, 1, 5 * GIB, (1 << 63) - 1, (1 << 64) - 1)


@pytest.mark.parametrize("facts", [HEALTHY, replace(HEALTHY, **NO_REPORT), replace(HEALTHY, backed=0)])
def test_what_no_guest_can_have_is_not_taken_for_true(facts: VmFacts) -> None:
    """Statistics that contradict themselves or the memory prove nothing about where memory is."""
    of_statistics = {Cause.PRIVATE_MEMORY, Cause.ORDER_TOO_LARGE, Cause.PAGE_CACHE, Cause.GUEST_BUSY}
    for total, free, caches in itertools.product(ABSURD, repeat=3):
        if max(free, caches) <= total <= facts.memory:
            continue
        given = {"memtot": total, "memfree": free, "caches": caches, "avail": free, "majflt": (1 << 64) - 1}
        findings = diagnose(replace(facts, statistics=given))
        assert not of_statistics & {finding.cause for finding in findings}, given
        assert all(finding.sentence.isprintable() for finding in findings)
