"""A picture of five machines in all states: what the tests of this folder show."""

from typing import Any

from guest.mm.views.free_lists import FreeListView
from host.terminal_view.styled_line import Line, Style
from protocol.units import GIB, MIB
from scripts.scenario.run_record import LedgerEntry, Sample, VmSample, VmState
from scripts.scenario.scenario import Scenario, VmKind, VmSpec
from scripts.scenario.view.picture import Figures, Note, Picture

SCENARIO = Scenario(
    name="night-shift",
    title="A night shift",
    budget_bytes=2 * GIB,
    swap_bytes=GIB,
    duration=3600.0,
    vms=(
        VmSpec(name="web", memory_bytes=GIB),
        VmSpec(name="batch\x1b[31m", memory_bytes=GIB, reporter="rotation"),
        VmSpec(name="linux", memory_bytes=512 * MIB, kind=VmKind.LINUX, command="true"),
        VmSpec(name="greedy", memory_bytes=2 * GIB),
        VmSpec(name="late", memory_bytes=GIB, start=1800.0, reporter=None),
    ),
)

SAMPLE = Sample(
    t=754.25,
    used_bytes=2000 * MIB,
    pressure=3.5,
    vms={
        "web": VmSample(
            state=VmState.RUNNING,
            allocated_bytes=512 * MIB,
            free_bytes=448 * MIB,
            reported_bytes=256 * MIB,
            resident_bytes=704 * MIB,
            refaulted_bytes=12 * MIB,
            stall_seconds=0.5,
            cache_bytes=64 * MIB,
            ledger=LedgerEntry(causes={"delay": 128 * MIB, "below_order": 60 * MIB, "pcp": 4 * MIB, "budget": 0}),
        ),
        "batch\x1b[31m": VmSample(
            state=VmState.FINISHED,
            allocated_bytes=64 * MIB,
            free_bytes=704 * MIB,
            reported_bytes=704 * MIB,
            resident_bytes=64 * MIB,
            balloon_bytes=256 * MIB,
            target_bytes=300 * MIB,
            ledger=LedgerEntry(causes={"below_order": 1 * MIB}),
        ),
        "linux": VmSample(state=VmState.RUNNING, resident_bytes=300 * MIB),
        "greedy": VmSample(state=VmState.OOM_KILLED, allocated_bytes=GIB, free_bytes=GIB),
        "late": VmSample(state=VmState.WAITING),
    },
)

NOTES = (
    Note(0.0, "web started memory 1.00G"),
    Note(61.5, "greedy started memory 2.00G"),
    Note(700.0, "greedy oom killed: greedy needs more than there is", Style.BAD),
    Note(750.0, "batch?[31m finished", Style.GOOD),
)

BOUNDARY = FreeListView(zone="Normal", order=10, migratetype="Movable", runs=(30, 90), boundary=30)
MIXED = FreeListView(zone="Normal", order=9, migratetype="Movable", runs=(0, 3, 1, 2, 2))
SMALL = FreeListView(zone="DMA32", order=0, migratetype="Unmovable", runs=(4096,), is_cut=True)


def picture(**more: Any) -> Picture:
    """Return the picture, with other fields if given."""
    fields: dict[str, Any] = {
        "scenario": SCENARIO,
        "policy": "ours",
        "sample": SAMPLE,
        "figures": Figures(
            peak_bytes=2040 * MIB,
            gib_minutes=12.3456,
            refaulted_bytes=12 * MIB,
            stall_seconds=0.5,
            oom_events=1,
            swapped_bytes=100 * MIB,
        ),
        "phases": {"web": "build 3", "batch\x1b[31m": "rest"},
        "notes": NOTES,
        "decision": Note(750.0, "ours: web reclaim 64M: pressure 3.5 % is above 1 %"),
    }
    return Picture(**{**fields, **more})


def texts(lines: list[Line]) -> list[str]:
    """Return the lines without their styles, and without blanks at their ends."""
    return [entry.text.rstrip() for entry in lines]
