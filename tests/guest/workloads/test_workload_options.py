"""The workloads: what each does with memory, in virtual time, and that it does so repeatably."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guest.mm.pageblock import MigrateType
from guest.mm.views.vmstat import buddyinfo, pagetypeinfo, unusable_free_index
from guest.workloads.allocation_trace import Alloc, Free, Phase, parse_trace
from guest.workloads.replay import Replay, seconds_between
from guest.workloads.workload import OutOfMemoryError, Steps, together
from guest.workloads.workload_options import WORKLOAD_HELP, WORKLOAD_NAMES, parse_workload
from protocol.errors import BalloonError, UsageError
from protocol.units import MIB
from tests.guest.workloads.workloads import VirtualRun

EXAMPLES = (
    "idle:seconds=3",
    "memhog:size=100M,hold=2,repeat=2",
    "churn:size=32M,seconds=1,lifetime=0.5",
    "page_fault1:size=16M,tasks=3,repeat=2",
    "page_fault2:size=4M,tasks=3,repeat=2,rate=64M",
    "pagecache:size=16M,drop=60,repeat=3",
    "build:size=24M,seconds=3,tick=0.1",
)


# --- All of them ---


@pytest.mark.parametrize("text", EXAMPLES)
def test_seed_does_the_same_to_the_last_bit(text: str) -> None:
    first, second = (VirtualRun().run(parse_workload(text), 7) for _ in range(2))
    assert first.trace == second.trace
    assert (first.now, first.steps) == (second.now, second.steps)
    assert pagetypeinfo(first.allocator) == pagetypeinfo(second.allocator)


@pytest.mark.long
@pytest.mark.parametrize("text", EXAMPLES[2:])
def test_seed_that_differs_does_something_else(text: str) -> None:
    assert VirtualRun().run(parse_workload(text), 1).trace != VirtualRun().run(parse_workload(text), 2).trace


@pytest.mark.parametrize("text", EXAMPLES)
def test_workload_frees_all_it_allocated(text: str) -> None:
    run = VirtualRun().run(parse_workload(text))
    assert run.machine.allocated_bytes == 0
    assert run.allocator.nr_free_pages() == VirtualRun().allocator.nr_free_pages()


@pytest.mark.long
@pytest.mark.parametrize("text", EXAMPLES)
def test_replay_leaves_the_same_lists_at_every_step(text: str) -> None:
    recorded = VirtualRun().run(parse_workload(text), 3)
    replayed = VirtualRun().run(Replay(events=parse_trace(recorded.trace.splitlines(), "trace")), 99)
    assert replayed.trace == recorded.trace
    assert buddyinfo(replayed.allocator) == buddyinfo(recorded.allocator)
    assert pagetypeinfo(replayed.allocator) == pagetypeinfo(recorded.allocator)
    assert replayed.phases == recorded.phases


def test_churn_stopped_half_way_is_replayed_into_the_identical_buddyinfo() -> None:
    recorded = VirtualRun().run(parse_workload("churn:size=128M,seconds=30,lifetime=2"), 5, until=9.5)
    assert recorded.machine.allocated_bytes > 64 * MIB
    replayed = VirtualRun().run(Replay(events=parse_trace(recorded.trace.splitlines(), "trace")))
    assert buddyinfo(replayed.allocator) == buddyinfo(recorded.allocator)
    assert list(replayed.allocator.zones[0].free_list.next) == list(recorded.allocator.zones[0].free_list.next)


@pytest.mark.long
@pytest.mark.parametrize(
    "text",
    [
        "memhog:size=1G",
        "page_fault1:size=300M,tasks=2",
        "page_fault2:size=200M,tasks=2",
        "build:size=1G,seconds=5,tick=0.1",
    ],
)
def test_out_of_memory_frees_all_that_was_held(text: str) -> None:
    run = VirtualRun()
    with pytest.raises(OutOfMemoryError, match="out of memory: no block of order"):
        run.run(parse_workload(text))
    assert run.machine.allocated_bytes == 0
    assert run.machine.failed_allocations > 0
    run.allocator.validate()


def test_replay_that_runs_out_of_memory_frees_all_that_it_held() -> None:
    run = VirtualRun(1 << 12)
    events = [Alloc(0.0, number, 10, MigrateType.MOVABLE) for number in range(8)]
    with pytest.raises(OutOfMemoryError):
        run.run(Replay(events=events))
    assert run.machine.allocated_bytes == 0


# --- Each of them ---


def test_idle_without_seconds_has_no_end() -> None:
    assert VirtualRun().run(parse_workload("idle"), until=10_000).now >= 10_000


def test_memhog_takes_the_size_it_was_given() -> None:
    run = VirtualRun().run(parse_workload("memhog:size=100M,hold=2,rest=1,repeat=3"))
    assert run.peak_bytes == 100 * MIB
    assert run.now == pytest.approx(9)
    assert run.phases == ["fill", "hold", "free", "rest"] * 3


def test_memhog_fills_at_its_rate() -> None:
    run = VirtualRun().run(parse_workload("memhog:size=100M,hold=0,rate=50M"))
    assert run.now == pytest.approx(2)


def test_page_fault1_touches_all_of_its_region_in_every_round() -> None:
    events = parse_trace(VirtualRun().run(parse_workload("page_fault1:repeat=3")).trace.splitlines(), "trace")
    orders = [event.order for event in events if isinstance(event, Alloc)]
    assert orders == [9] * 64 * 3
    assert sum(isinstance(event, Free) for event in events) == 64 * 3


def test_page_fault2_is_page_by_page() -> None:
    run = VirtualRun().run(parse_workload("page_fault2:size=5000K,repeat=1"))
    assert run.peak_bytes == 5000 * 1024
    assert {event.order for event in parse_trace(run.trace.splitlines(), "t") if isinstance(event, Alloc)} == {0}


def test_page_fault_has_a_rate_for_each_task() -> None:
    """Three tasks are not slower than one; their starts are spread over one round."""
    alone = VirtualRun().run(parse_workload("page_fault1:size=16M,rate=16M,repeat=10"))
    three = VirtualRun().run(parse_workload("page_fault1:size=16M,rate=16M,repeat=10,tasks=3"))
    assert alone.now == pytest.approx(10)
    assert 10 <= three.now < 11
    assert 16 * MIB < three.peak_bytes <= 48 * MIB


def test_pagecache_fills_with_single_pages_and_drops_them() -> None:
    run = VirtualRun().run(parse_workload("pagecache:size=64M,hold=3"))
    assert run.phases == ["fill", "hold", "drop", "rest"]
    assert run.peak_bytes == 64 * MIB
    allocated = [event for event in parse_trace(run.trace.splitlines(), "t") if isinstance(event, Alloc)]
    assert {event.order for event in allocated} == {0}
    types = [event.migratetype for event in allocated]
    assert 0 < types.count(MigrateType.RECLAIMABLE) < len(types) / 50
    assert set(types) == {MigrateType.MOVABLE, MigrateType.RECLAIMABLE}


def test_pagecache_makes_room_for_others_and_itself() -> None:
    """Reading four times the memory there is: the cache stays below the watermarks and nothing runs out."""
    run = VirtualRun(1 << 13)
    run.run(parse_workload("pagecache:size=128M"))
    assert run.machine.failed_allocations == 0
    assert 16 * MIB < run.peak_bytes < 32 * MIB
    assert run.allocator.vmscan.reclaimed_pages > 0
    assert run.machine.allocated_bytes == 0


def test_pagecache_is_asked_no_longer_when_it_is_over() -> None:
    run = VirtualRun(1 << 13).run(parse_workload("pagecache:size=8M"))
    assert run.allocator.vmscan.shrink(1) == 0


def test_pagecache_keeps_what_it_does_not_drop() -> None:
    """What stays between two rounds leaves holes: memory is free, but not in large blocks."""
    free_bytes: list[int] = []
    run = VirtualRun()

    def look() -> None:
        if run.phases[-1] == "rest":
            free_bytes.append(run.machine.allocated_bytes)

    run.run(parse_workload("pagecache:size=64M,drop=50,rest=1"), each_step=look)
    assert 2 * MIB < free_bytes[0] < 62 * MIB


@pytest.mark.long
def test_build_is_a_staircase() -> None:
    """The peaks of the steps climb to the size asked for, with small things left in between large free blocks."""
    run = VirtualRun(1 << 14)
    peaks: dict[str, int] = {}
    unusable: dict[str, int] = {}

    def look() -> None:
        phase = run.phases[-1]
        peaks[phase] = max(peaks.get(phase, 0), run.machine.allocated_bytes)
        unusable[phase] = unusable_free_index(9, run.allocator.zones[0].nr_free)

    run.run(parse_workload("build:size=40M,seconds=10,steps=4,tick=0.1"), each_step=look)
    assert run.phases == [f"{what} {step}" for step in range(1, 5) for what in ("compile", "link")] + ["clean"]
    assert run.now == pytest.approx(10, rel=0.05)
    links = [peaks[f"link {step}"] for step in range(1, 5)]
    assert links == sorted(links)
    assert links[-1] == pytest.approx(40 * MIB, rel=0.1)
    assert peaks["compile 4"] > peaks["compile 1"]
    assert unusable["compile 4"] > 50
    types = {event.migratetype for event in parse_trace(run.trace.splitlines(), "t") if isinstance(event, Alloc)}
    assert types == {MigrateType.MOVABLE, MigrateType.UNMOVABLE, MigrateType.RECLAIMABLE}


# --- Tasks at the same time ---


def test_tasks_take_turns_in_the_order_of_their_times() -> None:
    seen: list[tuple[float, str]] = []
    now = 0.0

    def task(name: str, *pauses: float) -> Steps:
        for pause in pauses:
            seen.append((now, name))
            yield pause
        seen.append((now, name))

    for seconds in together(VirtualRun().machine, [task("a", 1.0, 1.0), task("b", 0.5, 2.0), task("c", 0.0)]):
        now += seconds
    assert seen == [(0, "a"), (0, "b"), (0, "c"), (0, "c"), (0.5, "b"), (1, "a"), (2, "a"), (2.5, "b")]


# --- Replay ---


def test_replay_keeps_its_times_and_phases() -> None:
    events = (
        Phase(0.0, "begin"),
        Alloc(0.125, 1, 3, MigrateType.UNMOVABLE),
        Alloc(0.125, 2, 0, MigrateType.MOVABLE),
        Free(4.0, 1),
    )
    run = VirtualRun().run(Replay(events=events))
    assert run.trace == ("balloon-trace 1\n0.0 phase begin\n0.125 alloc 1 3 unmovable\n0.125 alloc 2 0\n4.0 free 1\n")
    assert (run.now, run.steps) == (4.0, 2)
    assert run.machine.allocated_bytes == 4096


@settings(deadline=None)
@given(times=st.lists(st.floats(0, 1e6), max_size=40).map(sorted))
def test_clock_that_adds_up_a_replay_shows_the_recorded_times(times: list[float]) -> None:
    """To the last bit, but for the rare sum that no number gives; that one is off by one bit and not carried on."""
    now = 0.0
    for then in times:
        if then > now:
            now += seconds_between(now, then)
        assert now <= then
        assert then - now <= then * 2.0**-52


def test_trace_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "some: trace, with=signs"
    path.write_bytes(b"balloon-trace 1\r\n" + b"# \xff\n" * 3000 + b"0 phase " + b"z" * 4000 + b"\n1 alloc 1 2\n")
    assert parse_workload(f"trace:{path}") == Replay(
        events=(Phase(0.0, "z" * 4000), Alloc(1.0, 1, 2, MigrateType.MOVABLE))
    )


# --- The command line's words ---


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hog", f"unknown workload 'hog', known are {', '.join(WORKLOAD_NAMES)}"),
        ("memhog:order=11", "workload memhog: order=11 is not from 0 to 10"),
        ("memhog:order", "workload memhog: unknown option 'order', known are size, order, hold, rest, rate, repeat"),
        ("memhog:hold=x", "workload memhog: hold=x is not a number"),
        ("memhog:repeat=0", "workload memhog: repeat=0 is out of range"),
        ("memhog:size=1M,size=2M", "workload memhog: size is given twice"),
        ("memhog:size=-1", "workload memhog: size=-1 is not a size: '-1' (write for example 4096, 512M or 1G)"),
        ("idle:seconds=nan", "workload idle: seconds=nan is out of range"),
        ("idle:seconds=inf", "workload idle: seconds=inf is out of range"),
        ("churn:tick=0", "workload churn: tick=0 is out of range"),
        ("churn:seconds=1e300", "workload churn: seconds=1e300 is out of range"),
        ("churn:lifetime=0", "workload churn: lifetime=0 is out of range"),
        ("page_fault1:tasks=1025", "workload page_fault1: tasks=1025 is not from 1 to 1024"),
        ("page_fault2:size=0", "workload page_fault2: size=0 is out of range"),
        (
            "memhog:hodl=2",
            "workload memhog: unknown option 'hodl=2', did you mean hold? "
            "known are size, order, hold, rest, rate, repeat",
        ),
        ("page_fault1:order=3", "workload page_fault1: unknown option 'order=3', known are size, tasks, repeat, rate"),
        ("pagecache:drop=101", "workload pagecache: drop=101 is not from 0 to 100"),
        ("build:jobs=0", "workload build: jobs=0 is not from 1 to 1024"),
        ("trace", "workload trace: a file is missing, write trace:FILE"),
        ("trace:/dev/zero", "/dev/zero:1:4097: the line is longer than 4096 characters"),
        ("trace:/dev/null", "/dev/null:1:1: the file is empty"),
    ],
)
def test_invalid_workload_is_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(complaint)}$"):
        parse_workload(text)


@pytest.mark.parametrize(("path", "why"), [("/nowhere/at all", "No such file or directory"), ("/", "Is a directory")])
def test_trace_that_cannot_be_read_is_a_failure(path: str, why: str) -> None:
    with pytest.raises(BalloonError, match=f"^workload trace: {path}: {why}$") as caught:
        parse_workload(f"trace:{path}")
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("text", EXAMPLES)
def test_defaults_in_the_help_are_the_real_ones(text: str) -> None:
    """The defaults in the help are the defaults."""
    name = text.partition(":")[0]
    described = re.search(rf"^  {name}\[:(.*?)\]", WORKLOAD_HELP, re.MULTILINE)
    assert described is not None
    assert parse_workload(f"{name}:{described[1]}") == parse_workload(name)


def test_help_names_every_workload() -> None:
    assert re.findall(r"^  (\w+)", WORKLOAD_HELP, re.MULTILINE) == list(WORKLOAD_NAMES)
