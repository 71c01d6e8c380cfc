"""The laboratory: what its experiments must show, its command line, and the page that quotes its walk."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest

from guest.mm.reporting.reporters import REPORTERS
from protocol.errors import UsageError
from protocol.units import MIB
from scripts.laboratory import boundary_cost, pace, page_fault, pictures, published, sweep, walk_through
from scripts.laboratory.__main__ import EXPERIMENTS, REAL, choose, main
from scripts.laboratory.experiment import Experiment, Table

PAGE = Path(__file__).resolve().parent.parent.parent.parent / "scripts" / "laboratory" / "free-block.md"

# -- what the experiments show -----------------------------------------------------------------------------------------


def test_boundary_costs_the_same_for_any_size_and_a_scan_does_not() -> None:
    per_block = {
        name: [boundary_cost.measure(gib, name, "half")["entries_per_block"] for gib in (1, 8, 64)]
        for name in ("boundary", "rotation")
    }
    assert max(per_block["boundary"]) <= 1.1 * min(per_block["boundary"])
    assert max(per_block["rotation"]) <= 1.1 * min(per_block["rotation"])
    scan = [boundary_cost.measure(gib, "scan", "half")["entries_per_block"] for gib in (1, 2, 4, 8)]
    # n reported at first, n more in batches of 16: what is passed grows with n.
    assert scan == [2.5 + 12 * gib for gib in (1, 2, 4, 8)]


@pytest.mark.parametrize("name", list(REPORTERS))
def test_refill_is_reported_in_full(name: str) -> None:
    row = boundary_cost.measure(2, name, "512 MiB")
    # The high-water mark leaves less than 32 blocks unreported, and here none: the last fill takes the rest.
    assert row["blocks_reported"] == 128


@pytest.mark.parametrize(("gib", "reports", "passes"), [(1, 2, 4), (8, 5, 13), (32, 17, 16), (128, 65, 16)])
def test_merged_design_is_predicted(gib: int, reports: int, passes: int) -> None:
    assert pace.predict(gib) == (reports, passes)


@pytest.mark.parametrize("gib", [1, 8])
def test_simulation_keeps_the_predicted_pace(gib: int) -> None:
    rows = [row for row in pace.measure(gib) if row["reporter"] == "rotation"]
    reports, passes = pace.predict(gib)
    assert len(rows) == passes
    assert [row["reports"] for row in rows[:-1]] == [reports] * (passes - 1)
    assert rows[-1]["begin_seconds"] == pytest.approx(2.0 * passes, abs=0.1)


@pytest.mark.parametrize(("test", "tasks"), [("page_fault1", 1), ("page_fault1", 16)])
def test_reporting_off_is_the_published_baseline(test: str, tasks: int) -> None:
    row = page_fault.measure(test, tasks, "off", "v12", "measured", 1.0)
    # A task counts 2 MiB at a time.
    assert row["pages_per_second"] == pytest.approx(row["published_baseline"], abs=512 * (tasks + 1))
    assert row["host_faults_percent"] == 0


def test_pages_that_the_reporter_took_slow_the_faults_down() -> None:
    row = page_fault.measure("page_fault1", 16, "boundary", "v12", "huge pages", 0.5)
    assert row["host_faults_percent"] > 1
    assert row["change_percent"] < -0.5


def test_page_fault2_is_the_same_page_by_page() -> None:
    row = page_fault.measure("page_fault2", 1, "off", "v17", "measured", 0.1)
    assert row["pages_per_second"] == pytest.approx(row["published_baseline"], rel=0.02)


def test_fault_of_the_host_is_paid_once_for_a_huge_page() -> None:
    cost = page_fault.FaultCost(exit_seconds=1.0, zero_bytes_per_second=4096.0, slowdown=2.0)
    assert [cost.seconds(pages) for pages in (0, 1, 512, 513)] == [0.0, 3.0, 1025.0, 1028.0]


@pytest.mark.parametrize(
    ("pfns", "expected"),
    [([], []), ([8], [(8, 1)]), ([8, 10, 12, 4, 6, 9], [(8, 3), (4, 2), (9, 1)])],
)
def test_runs_of_blocks(pfns: list[int], expected: list[tuple[int, int]]) -> None:
    assert list(page_fault.runs(pfns, 2)) == expected


def test_reporting_small_blocks_saves_more_and_costs_more() -> None:
    off, large, small = (sweep.measure(setting, 64 * MIB, 12.0) for setting in (None, (9, 2.0, 32), (0, 2.0, 32)))
    assert off["footprint_gib_minutes"] > large["footprint_gib_minutes"] > small["footprint_gib_minutes"]
    assert off["device_cpu_seconds"] == 0 < large["device_cpu_seconds"] < small["device_cpu_seconds"]
    assert small["allocated_gib_minutes"] == pytest.approx(off["allocated_gib_minutes"], rel=0.01)


def test_published_changes_are_those_of_the_letters() -> None:
    assert published.WILL_IT_SCALE["v12"]["page_fault1", 16].change_percent == pytest.approx(-6.51, abs=0.005)
    assert published.WILL_IT_SCALE["v17"]["page_fault1", 16].change_percent == pytest.approx(-0.81, abs=0.005)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_page_shows_what_is_printed() -> None:
    quoted = re.findall(r"<!-- walk-through: (.*?) -->\n```text\n(.*?)\n```\n", PAGE.read_text(), re.DOTALL)
    assert quoted == list(walk_through.sections())


def test_walk_through_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["walk-through"]) == 0
    assert capsys.readouterr().out == walk_through.text() + "\n"


# -- the command -------------------------------------------------------------------------------------------------------


def test_experiments_keep_their_order() -> None:
    assert choose([]) == EXPERIMENTS
    assert [experiment.name for experiment in choose(["pace", "boundary-cost"])] == ["boundary-cost", "pace"]


def test_unknown_experiment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="unknown experiment 'speed'; known are boundary-cost, page-fault"):
        choose(["speed"])
    assert main(["speed"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    names = [experiment.name for experiment in (*EXPERIMENTS, *REAL)]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


def test_run_without_matplotlib_leaves_tables_and_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    output, data = tmp_path / "new" / "directory", tmp_path / "data.json"
    assert main(["pace", "--quick", "--output", str(output), "--json", str(data)]) == 0
    said = capsys.readouterr()
    assert pictures.NO_PICTURES in said.out
    assert "pace: idle guest of 8 GiB" in said.err
    assert [path.name for path in output.iterdir()] == ["pace.csv"]
    with (output / "pace.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    written = json.loads(data.read_text())["pace"]["rows"]
    assert [row["reported_gib"] for row in rows] == [str(row["reported_gib"]) for row in written]


def test_json_on_standard_output_is_all_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    names = [experiment.name for experiment in EXPERIMENTS]
    assert main([*names, "--quick", "--output", str(tmp_path), "--json", "-"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == names


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_place_that_cannot_be_written_is_one_line(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["pace", "--quick", "--output", str(tmp_path), option, str(tmp_path / "file" / "below")]) == 1
    assert capsys.readouterr().err.startswith(f"balloon-lab: {option} {tmp_path}/file/below: ")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_experiments_draw_their_rows(experiment: Experiment, tmp_path: Path) -> None:
    rows = experiment.run(True, lambda _: None).rows
    path = tmp_path / "picture.png"
    pictures.save_picture(path, experiment, rows)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_table_is_aligned() -> None:
    table = Table(title="Fruit", header=("name", "number"), rows=(("apple", "1"), ("fig", "12345678")))
    assert str(table) == "Fruit\n  name     number\n  apple         1\n  fig    12345678"
