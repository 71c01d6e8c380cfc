"""The what-if table: from compare's file, and from another run."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from scripts.scenario.report.run_files import RunFiles
from scripts.scenario.report.what_if import as_table, compared, what_if
from scripts.scenario.score import Score, score_of
from tests.scripts.scenario.report.small_run import small_run, write_small_run


def write_table(path: Path, scores: dict[str, list[Score]], **played: object) -> None:
    """Write scores as ``balloon-lab compare --out`` does."""
    rows = [
        {"variant": variant, "seed": seed, **played, **score.as_json()}
        for variant, of_variant in scores.items()
        for seed, score in enumerate(of_variant)
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_the_table_is_that_of_compare(tmp_path: Path) -> None:
    score = score_of(small_run())
    first = [replace(score, host_gib_minutes=value) for value in (2.0, 2.1, 2.0)]
    second = [replace(score, host_gib_minutes=value) for value in (1.0, 1.1, 1.0)]
    write_table(tmp_path / "compare.csv", {"reporter=none": first, "reporter=rotation": second})
    table = as_table(compared(tmp_path / "compare.csv"))
    assert table is not None
    assert table["columns"][0] == "GiB*min"
    none, rotation = table["rows"]
    assert (none["variant"], none["seeds"], none["cells"][0]) == ("reporter=none", 3, [2.0333, 0.0577, False])
    assert rotation["cells"][0] == [1.0333, 0.0577, True]
    assert not any(differs for _, _, differs in rotation["cells"][1:])


def test_a_run_beside_another(tmp_path: Path) -> None:
    files = RunFiles(write_small_run(tmp_path / "a"))
    assert what_if(files, []) is None
    table = what_if(files, [write_small_run(tmp_path / "b")])
    assert table is not None
    assert [row["variant"] for row in table["rows"]] == ["this run (reporting, seed 1)", "b (reporting, seed 1)"]
    assert table["rows"][0]["cells"] == table["rows"][1]["cells"]


def test_what_another_scenario_costs_is_marked_and_not_compared(tmp_path: Path) -> None:
    files = RunFiles(write_small_run(tmp_path / "a"))
    name, duration = files.summary["scenario"]["name"], files.summary["scenario"]["duration"]
    score = score_of(small_run())
    cheap = [replace(score, host_gib_minutes=value) for value in (0.1, 0.1, 0.1)]
    write_table(tmp_path / "compare.csv", {"x": [score] * 3}, scenario=name, duration=duration, scale=1.0)
    (tmp_path / "other").mkdir()
    write_table(tmp_path / "other" / "compare.csv", {"x": cheap}, scenario="pace", duration=2 * duration, scale=0.5)
    table = what_if(files, [tmp_path, tmp_path / "other"])
    assert table is not None
    names = [row["variant"] for row in table["rows"]]
    assert names == ["x", f"x [scenario pace, {2 * duration:g} s, scale 0.5]"]
    assert not table["rows"][1]["cells"][0][2]
    run = write_small_run(tmp_path / "b")
    summary = json.loads((run / "summary.json").read_text())
    summary["scenario"]["name"] = "pace"
    (run / "summary.json").write_text(json.dumps(summary))
    beside = what_if(files, [run])
    assert beside is not None
    assert beside["rows"][1]["variant"] == "b (reporting, seed 1) [scenario pace]"


def test_seeds_that_differ_are_refused(tmp_path: Path) -> None:
    score = score_of(small_run())
    write_table(tmp_path / "compare.csv", {"a": [score], "b": [score, score]})
    with pytest.raises(BalloonError, match="the variants do not have the same seeds"):
        compared(tmp_path / "compare.csv")
    (tmp_path / "compare.csv").write_text("variant,seed,host_gib_minutes\na,0,x\n")
    with pytest.raises(BalloonError, match=r"compare\.csv: the score of 'a', seed 0, is broken"):
        compared(tmp_path / "compare.csv")
