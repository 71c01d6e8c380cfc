"""The demonstration's state: events in, what is shown out."""

from scripts.demonstration.state import SETTLE_SECONDS, HostState, Picture, Settling, VmState
from tests.scripts.demonstration.examples import vm


def test_guest_is_known_by_its_events() -> None:
    state = vm()
    state.apply({"t": 1.0, "event": "booted", "pid": 42, "memory_bytes": 1 << 30})
    assert (state.pid, state.status) == (42, "running")
    state.apply({"t": 2.0, "event": "phase", "name": "fill"})
    assert (state.phase, state.phase_time, state.status) == ("fill", 2.0, "filling its memory")
    memory = {"free_bytes": 1, "reported_bytes": 2, "allocated_bytes": 3, "resident_bytes": 4}
    state.apply({"t": 3.0, "event": "memory", **memory})
    assert (state.free_bytes, state.reported_bytes, state.allocated_bytes, state.resident_bytes) == (1, 2, 3, 4)
    state.apply({"t": 4.0, "event": "finished", "verified_pages": 7, "corrupted_pages": 0})
    assert (state.verified_pages, state.corrupted_pages) == (7, 0)


def test_figures_that_a_real_kernel_does_not_give_stay_unknown() -> None:
    state = vm()
    state.apply({"t": 3.0, "event": "memory", "memory_bytes": 1 << 30, "resident_bytes": 4})
    assert state.resident_bytes == 4
    assert state.free_bytes is None
    assert state.reported_bytes is None
    assert state.allocated_bytes is None
    state.apply({"t": 4.0, "event": "finished", "status": 0, "kernel_warnings": 0})
    assert state.verified_pages is None


def test_unknown_event_or_phase_changes_nothing() -> None:
    state = vm()
    state.apply({"t": 1.0, "event": "attached", "features": 5})
    assert state.status == "not started"
    state.apply({"t": 1.0, "event": "phase", "name": "churn"})
    assert state.status == "churn"


def test_running_out_of_memory_inside_the_guest_is_shown() -> None:
    state = vm()
    state.apply({"t": 1.0, "event": "out_of_memory", "reason": "no block"})
    assert state.out_of_memory
    assert state.status == "out of memory"


def test_peak_outlives_the_memory() -> None:
    state = vm()
    for resident in (10, 30, 20):
        state.apply({"t": 1.0, "event": "memory", "resident_bytes": resident, "free_bytes": 5})
    assert state.peak_bytes == 30
    state.apply({"t": 2.0, "event": "booted", "pid": 7})
    state.power_off("killed", "KILLED")
    assert (state.peak_bytes, state.resident_bytes, state.free_bytes, state.pid) == (30, 0, None, None)


def test_reports_are_counted_per_second() -> None:
    state = vm()
    for ticks, reports in ((2, 0), (1, 3), (1, 1), (3, 0)):
        for _ in range(ticks):
            for _ in range(reports):
                state.apply_host({"t": 9.0, "event": "report", "vm": 1, "discarded_bytes": 100})
            state.tick()
    # The last second is four ticks: one with a single report, three without.
    assert state.reports_per_second == 1
    assert list(state.report_history) == [0, 0, 3, 1, 0, 0, 0]
    assert (state.reports, state.discarded_bytes, state.report_time) == (4, 400, 9.0)


def test_events_of_the_daemon_other_than_reports_are_not_counted() -> None:
    state = vm()
    state.apply_host({"t": 1.0, "event": "refused", "vm": 1, "reason": "unaligned", "bytes": 1})
    assert state.reports == 0


def test_reading_of_the_host_replaces_an_older_one_of_the_guest() -> None:
    state = vm()
    state.apply({"t": 1.0, "event": "memory", "resident_bytes": 30, "allocated_bytes": 20, "free_bytes": 80})
    assert state.carried_bytes == 10
    state.measured(50)
    assert (state.resident_bytes, state.peak_bytes, state.carried_bytes) == (50, 50, 10)
    state.measured(5)
    assert (state.resident_bytes, state.peak_bytes) == (5, 50)


def test_machine_has_settled_when_nothing_changed_for_a_while() -> None:
    state = vm(resident_bytes=700)
    settling = Settling(state, 0.0)
    assert settling.follow(SETTLE_SECONDS - 0.1) is False
    # A report whose effect is seen later is one change, and its effect another: amount and time stay together.
    state.apply_host({"t": 2.4, "event": "report", "vm": 1, "discarded_bytes": 100})
    assert settling.follow(SETTLE_SECONDS) is False
    state.measured(600)
    assert settling.follow(3.0) is False
    assert settling.follow(3.0 + SETTLE_SECONDS) is True
    standing = settling.standing
    assert (standing.resident_bytes, standing.report_time, standing.reports) == (600, 2.4, 1)
    # Once is enough: what comes later belongs to another story.
    state.measured(10)
    assert settling.follow(99.0) is False
    assert settling.settled
    assert settling.standing is standing


def test_unsettled_machine_is_shown_as_it_was_last_seen() -> None:
    state = vm(resident_bytes=700)
    settling = Settling(state, 0.0)
    state.measured(100)
    settling.follow(1.0)
    assert (settling.standing.resident_bytes, settling.settled) == (100, False)


def test_tick_closes_every_history() -> None:
    host = HostState(budget_bytes=100, budget_source="test")
    states = (vm(), VmState(name="B", kind="emulated guest", memory_bytes=1))
    picture = Picture(title="", round_title="", host=host, vms=states)
    host.apply(70)
    host.apply(40)
    picture.tick()
    assert list(host.history) == [40]
    assert host.peak_bytes == 70
    assert [len(state.report_history) for state in states] == [1, 1]
