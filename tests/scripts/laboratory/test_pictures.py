"""The pictures of the laboratory: their formats, and what tells their series apart."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest

from guest.mm.reporting.reporters import REPORTERS
from protocol.units import MIB
from scripts.laboratory import boundary_cost, linux_run, pace, page_fault, pictures, sweep, taking_turns
from scripts.laboratory.__main__ import EXPERIMENTS, REAL, main
from scripts.laboratory.experiment import Experiment, Row, summarise
from scripts.laboratory.style import LOOKS, REPORTER_LOOKS, SOURCE_LOOKS, error_bars
from scripts.scenario.run_record import LedgerEntry, RunRecord, Sample, VmSample, VmState
from scripts.scenario.scenario import Scenario, VmSpec

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)
BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}

# -- rows that no experiment has computed ------------------------------------------------------------------------------


def walk_rows(*sizes: int) -> list[Row]:
    """Return rows of boundary-cost. The largest guest has a published loss of 30 to 33 %."""
    rows: list[Row] = [
        {
            "memory_gib": gib,
            "refill": refill,
            "reporter": reporter,
            "entries_per_block": gib * number + 0.5,
            "lock_share_percent": 4.0 * number,
            "lock_share_percent_least": 3.0 * number,
            "lock_share_percent_most": 9.0 * number,
        }
        for gib in sizes
        for refill in boundary_cost.REFILLS
        for number, reporter in enumerate(REPORTERS, 1)
    ]
    loss = {"published_throughput_loss_percent_least": 30, "published_throughput_loss_percent_most": 33}
    rows[-1] = {**rows[-1], **loss}
    return rows


def fault_rows() -> list[Row]:
    return [
        {
            "test": "page_fault1",
            "tasks": tasks,
            "reporter": reporter,
            "device": "huge pages",
            "change_percent": -3.0 * tasks,
            "change_percent_least": -5.0 * tasks,
            "change_percent_most": -1.0 * tasks,
            "published_change_percent": 0.5,
            "runs": 7,
        }
        for reporter in page_fault.SERIES
        for tasks in (1, 2)
    ]


def pass_rows() -> list[Row]:
    return [
        {
            "free_gib": gib,
            "reporter": reporter,
            "begin_seconds": 3.0 * number,
            "end_seconds": 3.0 * number + 1.0,
            "reported_gib": gib * number / 4,
            "predicted_passes": 9,
        }
        for gib in (3, 5, 6, 7)
        for reporter in ("rotation", "boundary")
        for number in range(1, 5)
    ]


def build_rows() -> list[Row]:
    ratios = {"footprint_ratio": 0.5, "published_average_ratio": 0.7, "build_mib": 11, "virtual_seconds": 6.0}
    return [
        {"setting": "no reporting", **ratios},
        {"setting": "a", **ratios, "added_cpu_ratio": 2.0, "published_added_cpu_ratio": 3.0},
    ]


def timeline_rows() -> list[Row]:
    events = [("phase", 0.0, "idle", None), ("memory", 0.0, None, 10.0), ("balloon", 1.0, None, 30.0)]
    events += [("target", 0.5, None, 40.0), ("report", 1.0, None, 4.0), ("inflate", 1.2, None, 30.0)]
    events += [("hint", 1.4, None, 2.0), ("memory", 2.0, None, 20.0)]
    return [dict(zip(("event", "seconds", "phase", "mib"), event, strict=True)) for event in events]


def turns_rows() -> list[Row]:
    round_ends = {"with reporting": "finished", "without reporting": "oom-killed"}
    return [
        {
            "round": name,
            "seconds": seconds,
            "vm": vm,
            "state": state if vm == "b" and seconds == 2.0 else "running",
            "used_mib": 10.0 * seconds,
            "held_mib": 5.0 if vm == "a" else 0.0,
            "budget_mib": 40.0,
        }
        for name, state in round_ends.items()
        for seconds in (0.0, 1.0, 2.0)
        for vm in ("a", "b")
    ]


ROWS = {
    boundary_cost.EXPERIMENT.name: walk_rows(2, 48),
    page_fault.EXPERIMENT.name: fault_rows(),
    sweep.EXPERIMENT.name: build_rows(),
    pace.EXPERIMENT.name: pass_rows(),
    linux_run.EXPERIMENT.name: timeline_rows(),
    taking_turns.EXPERIMENT.name: turns_rows(),
}


def drawn(experiment: Experiment, rows: list[Row]) -> Any:
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    experiment.draw(figure, rows)
    return figure


def spans(axes: Any) -> list[tuple[float, float]]:
    """Return the ends of the error bars, in the order of the bars."""
    along = {"x": 0, "y": 1}
    return [
        (float(segment[0][along[direction]]), float(segment[1][along[direction]]))
        for container in axes.containers
        if getattr(container, "has_xerr", False) or getattr(container, "has_yerr", False)
        for direction in ("x" if container.has_xerr else "y",)
        for segment in container.lines[2][0].get_segments()
    ]


# -- what is drawn -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, *REAL], ids=lambda experiment: experiment.name)
def test_series_differ_without_their_colour(experiment: Experiment) -> None:
    series = 0
    for axes in drawn(experiment, ROWS[experiment.name]).axes:
        lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
        styles = [(line.get_marker(), str(line.get_linestyle())) for line in lines]
        assert len(set(styles)) == len(styles)
        assert all(marker != "None" for marker, _ in styles)
        bars = [group for group in axes.containers if hasattr(group, "patches") and group.get_label()[:1] != "_"]
        hatches = [group.patches[0].get_hatch() for group in bars]
        assert len(set(hatches)) == len(hatches)
        areas = [area for area in axes.collections if area.get_label()[:1] != "_"]
        assert len({area.get_hatch() for area in areas}) == len(areas)
        series += len(lines) + len(bars) + len(areas)
    assert series >= 2


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, *REAL], ids=lambda experiment: experiment.name)
def test_axes_and_captions_say_what_they_show(experiment: Experiment) -> None:
    figure = drawn(experiment, ROWS[experiment.name])
    labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label]
    assert labels
    assert all("(" in label for label in labels if "blocks in a report" not in label)
    assert figure.get_supxlabel()


def test_walked_entries_are_those_of_the_rows() -> None:
    rows = walk_rows(2, 48)
    figure = drawn(boundary_cost.EXPERIMENT, rows)
    for axes, refill in zip(figure.axes[-2:], boundary_cost.REFILLS, strict=True):
        assert {line.get_label() for line in axes.get_lines()} == set(REPORTERS)
        for line in axes.get_lines():
            mine = [row for row in rows if row["refill"] == refill and row["reporter"] == line.get_label()]
            assert list(line.get_xdata()) == [2, 48]
            assert list(line.get_ydata()) == [row["entries_per_block"] for row in mine]


def test_published_throughput_has_an_axis_of_its_own() -> None:
    computed, lost, *sizes = drawn(boundary_cost.EXPERIMENT, walk_rows(2, 48)).axes
    assert "48 GiB" in computed.get_title()
    assert "48 GiB" in lost.get_title()
    assert "zone lock" in computed.get_xlabel()
    assert "throughput" in lost.get_xlabel()
    (mark,) = lost.patches
    assert (mark.get_x(), mark.get_x() + mark.get_width()) == (30, 33)
    assert all("%" not in axes.get_ylabel() and not axes.patches for axes in sizes)


def test_nothing_is_compared_where_nothing_was_published() -> None:
    rows = [{key: value for key, value in row.items() if "published" not in key} for row in walk_rows(1, 2)]
    assert len(drawn(boundary_cost.EXPERIMENT, rows).axes) == 2


def test_loss_was_published_for_one_guest() -> None:
    rows = [
        boundary_cost.measure(gib, name, refill) for gib, name, refill in ((32, "scan", "512 MiB"), (1, "scan", "half"))
    ]
    assert [row.get("published_throughput_loss_percent_most") for row in rows] == [20, None]
    for row in rows:
        share = row["lock_share_percent"]
        assert row["lock_share_percent_least"] == pytest.approx(share / 2)
        assert row["lock_share_percent_most"] == pytest.approx(share * 2)


def test_assumed_costs_of_an_entry_are_drawn_as_spread() -> None:
    computed = drawn(boundary_cost.EXPERIMENT, walk_rows(2, 48)).axes[0]
    assert spans(computed) == [(3.0 * number, 9.0 * number) for number in (1, 2, 3)]


def test_faults_are_drawn_with_the_spread_of_their_runs() -> None:
    figure = drawn(page_fault.EXPERIMENT, fault_rows())
    for axes in figure.axes:
        assert spans(axes) == [(-5.0, -1.0), (-10.0, -2.0)]
        assert sorted(bar.get_height() for bar in axes.patches) == [-6.0, -3.0, 0.5, 0.5]
    assert "7 runs" in figure.get_supxlabel()


def test_seed_changes_a_run_of_faults_and_nothing_else() -> None:
    first, again, other = (
        page_fault.measure("page_fault1", 16, "boundary", "v12", "huge pages", 0.1, seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first["pages_per_second"] != other["pages_per_second"]
    assert first["published_change_percent"] == other["published_change_percent"]


def test_ends_by_arithmetic_are_those_of_the_rows() -> None:
    (axes,) = drawn(pace.EXPERIMENT, pass_rows()).axes
    (ends,) = [line for line in axes.get_lines() if line.get_label() == "end by arithmetic"]
    assert list(ends.get_xdata()) == [18.0] * 4
    shares = [list(line.get_ydata()) for line in axes.get_lines() if "GiB free" in line.get_label()]
    assert shares == [pytest.approx([0, 25, 50, 75, 100])] * 4


def test_build_is_named_after_the_rows() -> None:
    figure = drawn(sweep.EXPERIMENT, build_rows())
    assert next(text.get_text() for text in figure.axes[1].get_legend().get_texts()) == "simulated (11 MiB, 6 s)"


# -- the shared style --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aspect", ["colour", "marker", "line", "hatch"])
def test_looks_differ_in_every_aspect(aspect: str) -> None:
    values = [getattr(look, aspect) for look in LOOKS]
    assert len(set(values)) == len(values)


def test_named_series_have_looks_of_their_own() -> None:
    for names in (REPORTER_LOOKS, SOURCE_LOOKS):
        assert all(first != second for first, second in itertools.combinations(names.values(), 2))
        assert set(names.values()) <= set(LOOKS)


def test_look_is_passed_on_and_can_be_changed() -> None:
    look = LOOKS[1]
    line, bars = look.of_line(markersize=3), look.of_bars()
    assert (line["color"], line["marker"], line["linestyle"], line["markersize"]) == (*_shown(look), 3)
    assert (bars["facecolor"][0], bars["hatch"]) == (look.colour, look.hatch)


def _shown(look: Any) -> tuple[Any, ...]:
    return look.colour, look.marker, look.line


# -- spread ------------------------------------------------------------------------------------------------------------


def test_runs_become_their_median_from_the_least_to_the_most() -> None:
    runs: list[Row] = [{"name": "a", "loss": value, "seed": seed} for seed, value in enumerate((3.0, -1.0, 2.0))]
    row = summarise(runs, ["loss"])
    assert row == {"name": "a", "loss": 2.0, "loss_least": -1.0, "loss_most": 3.0, "seed": 0, "runs": 3}


def test_error_bars_reach_from_the_least_to_the_most() -> None:
    rows = [summarise([{"loss": value} for value in values], ["loss"]) for values in ((1.0, 2.0, 4.0), (5.0, 5.0, 5.0))]
    assert error_bars(rows, "loss") == [[1.0, 0.0], [2.0, 0.0]]


# -- formats -----------------------------------------------------------------------------------------------------------


@needs_matplotlib
@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_same_rows_give_the_same_file(kind: str, tmp_path: Path) -> None:
    rows = pace.measure(1)
    paths = [tmp_path / f"{name}.{kind}" for name in ("first", "second")]
    for path in paths:
        pictures.save_picture(path, pace.EXPERIMENT, rows)
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(BEGINNINGS[kind])
    assert first == second


@needs_matplotlib
@pytest.mark.parametrize(
    ("options", "kinds"), [([], ["png"]), (["--format", "svg", "--format", "pdf"], ["svg", "pdf"])]
)
def test_pictures_have_the_formats_asked_for(options: list[str], kinds: list[str], tmp_path: Path) -> None:
    assert main(["pace", "--quick", "--output", str(tmp_path), *options]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"pace.{kind}" for kind in ("csv", *kinds))


def test_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["pace", "--format", "gif"])
    assert "'gif'" in capsys.readouterr().err


def test_layers_of_two_guests_add_up_and_their_end_is_said() -> None:
    with_reporting, without = drawn(taking_turns.EXPERIMENT, turns_rows()).axes
    for axes in (with_reporting, without):
        top = axes.collections[-1].get_paths()[0].vertices[:, 1].max()
        assert top == 2 * 20.0 + 5.0
    assert [[text.get_text() for text in axes.texts][1:] for axes in (with_reporting, without)] == [
        ["guest b has\nall it wanted"],
        ["guest b is killed:\nout of memory"],
    ]


def test_rows_tell_what_a_guest_uses_from_what_it_has_freed() -> None:
    vm = VmSample(
        state=VmState.RUNNING,
        allocated_bytes=60 * MIB,
        resident_bytes=100 * MIB,
        ledger=LedgerEntry(causes={"delay": 30 * MIB, "pcp": 10 * MIB}),
    )
    spec = VmSpec(name="a", memory_bytes=128 * MIB)
    scenario = Scenario(name="s", title="s", budget_bytes=256 * MIB, duration=1.0, vms=(spec,))
    record = RunRecord(scenario=scenario, policy="reporting", seed=0, is_virtual=False)
    record.samples.append(Sample(t=0.25, used_bytes=100 * MIB, vms={"a": vm}))
    (row,) = taking_turns.rows_of("with reporting", record)
    assert (row["seconds"], row["used_mib"], row["held_mib"], row["budget_mib"]) == (0.25, 60.0, 40.0, 256.0)
