"""The timeline of a real guest: rows from events, table, chart and picture from rows."""

from typing import Any

import pytest

from protocol.units import MIB
from scripts.laboratory import linux_run
from scripts.laboratory.__main__ import EXPERIMENTS, choose
from scripts.laboratory.experiment import Row
from scripts.laboratory.timeline import CAUSES, chart, phase_table, phases_of, rows_of


def event(t: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "event": kind, **fields}


EVENTS = [
    event(100.0, "phase", name="idle"),
    event(100.0, "memory", resident_bytes=10 * MIB),
    event(101.0, "phase", name="balloon"),
    event(101.1, "target", bytes=40 * MIB),
    event(101.2, "inflate", discarded_bytes=30 * MIB, pages=256),
    event(101.3, "balloon", actual_bytes=30 * MIB, target_bytes=40 * MIB),
    event(101.3, "connected", pid=1),
    event(102.0, "report", discarded_bytes=4 * MIB),
    event(101.5, "hint", discarded_bytes=2 * MIB),
    event(102.5, "memory", resident_bytes=20 * MIB),
]


def test_rows_are_in_order_of_time_from_the_first_event() -> None:
    rows = rows_of(EVENTS)
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert rows[0]["seconds"] == 0.0
    assert [(row["event"], row["mib"]) for row in rows if row["event"] in CAUSES] == [
        ("inflate", 30.0),
        ("hint", 2.0),
        ("report", 4.0),
    ]
    assert all(row["event"] != "connected" for row in rows)
    assert rows_of([]) == []


def test_phases_end_where_the_next_begins() -> None:
    phases = phases_of(rows_of(EVENTS))
    assert [(phase.name, phase.begin, phase.end) for phase in phases] == [("idle", 0.0, 1.0), ("balloon", 1.0, 2.5)]


def test_table_has_what_each_phase_gave_back() -> None:
    table = phase_table(rows_of(EVENTS))
    assert table.rows == (
        ("idle", "1.00", "0", "0", "0", "10", "0"),
        ("balloon", "1.50", "4", "30", "2", "20", "30"),
    )


def test_chart_shows_cost_and_balloon_side_by_side() -> None:
    lines = [row for row in chart(rows_of(EVENTS)).rows if row[0] in ("0.0", "2.5")]
    (cost, balloon), (last_cost, last_balloon) = ((row[1].count("#"), row[1].count("o")) for row in lines)
    assert balloon == 0
    assert abs(last_cost - 2 * cost) <= 1
    assert abs(last_balloon - 3 * cost) <= 2
    assert lines[0][-1].strip() == "idle"
    assert str(chart([]))


def test_timeline_runs_only_when_it_is_named() -> None:
    assert choose([]) == EXPERIMENTS
    assert linux_run.EXPERIMENT not in EXPERIMENTS
    assert choose(["timeline"]) == (linux_run.EXPERIMENT,)


def draw(rows: list[Row]) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    linux_run.EXPERIMENT.draw(figure, rows)
    assert len(figure.axes) == 2


def test_picture_is_drawn_from_the_rows_alone() -> None:
    draw(rows_of(EVENTS))
