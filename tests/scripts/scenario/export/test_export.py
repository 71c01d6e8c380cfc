"""Results for other programs: tables that say the same as the run's files, and a trace as its format asks for."""

import csv
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from host.policy.registry import make_policy
from protocol.units import MIB
from scripts.laboratory.__main__ import main
from scripts.scenario.export.perfetto import HOST_PID, PHASES_TID, POLICY_TID, trace
from scripts.scenario.export.run_tables import read_results
from scripts.scenario.results import LEDGER_COLUMNS, SAMPLE_COLUMNS, prepare_directory, write_results
from scripts.scenario.scenario import PolicySpec, Scenario, VmSpec
from scripts.scenario.virtual.fleet import Fleet

VM = VmSpec(name="a", memory_bytes=64 * MIB, workloads=("memhog:size=16M,hold=2,rest=1,repeat=2",))
IDLE = VmSpec(name="b", memory_bytes=32 * MIB, start=3.0, workloads=("idle",))
SCENARIO = Scenario(
    name="s", title="s", budget_bytes=96 * MIB, duration=10.0, vms=(VM, IDLE), policy=PolicySpec(name="steady")
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    prepare_directory(out)
    write_results(Fleet(SCENARIO, make_policy("steady")).run(), out)
    return out


@pytest.fixture(scope="module")
def traced(directory: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = trace(read_results(directory))["traceEvents"]
    return events


def test_csv_repeats_the_tables_and_json_has_them_all(directory: Path, tmp_path: Path) -> None:
    assert main(["export", str(directory), "--to", "csv", "--to", "json", "--out", str(tmp_path / "out")]) == 0
    for name, columns in (("samples", SAMPLE_COLUMNS), ("ledger", LEDGER_COLUMNS)):
        with (directory / f"{name}.csv").open() as before, (tmp_path / "out" / f"{name}.csv").open() as after:
            first, second = list(csv.reader(before)), list(csv.reader(after))
        assert first[0] == second[0] == list(columns)
        assert len(first) == len(second) > 10
        number = columns.index("resident_bytes" if name == "samples" else "below_order")
        assert [row[number] for row in first] == [row[number] for row in second]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["summary"] == json.loads((directory / "summary.json").read_text())
    lines = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    assert [(row["t"], row["event"]) for row in run["events"]] == [(line["t"], line["event"]) for line in lines]
    assert run["decisions"][0]["inputs"]["host"]["budget_bytes"] == 96 * MIB


def test_parquet_has_types(directory: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main(["export", str(directory), "--to", "parquet", "--out", str(tmp_path)]) == 0
    results = read_results(directory)
    for table in results.tables:
        read = parquet.read_table(tmp_path / f"{table.name}.parquet")
        assert read.column_names == list(table.columns)
        assert read.num_rows == len(table.rows)
        assert str(read.schema.field("t").type) == "double"
    samples = parquet.read_table(tmp_path / "samples.parquet")
    assert str(samples.schema.field("resident_bytes").type) == "int64"
    number = SAMPLE_COLUMNS.index("resident_bytes")
    assert samples["resident_bytes"].to_pylist() == [row[number] for row in results.samples.rows]


def test_without_pyarrow_one_line_says_what_to_install(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["export", str(directory), "--to", "csv", "--to", "parquet", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'pyarrow>=18'" in line
    assert not (tmp_path / "out").exists()


REQUIRED = {
    "M": {"name": str, "pid": int, "args": dict},
    "C": {"name": str, "pid": int, "ts": int, "args": dict},
    "X": {"name": str, "pid": int, "tid": int, "ts": int, "dur": int},
    "i": {"name": str, "pid": int, "tid": int, "ts": int, "s": str},
}
"""Trace Event Format: the fields of each phase of event that is written."""


def test_the_trace_keeps_to_the_format(directory: Path, tmp_path: Path, traced: list[dict[str, Any]]) -> None:
    assert main(["export", str(directory), "--to", "perfetto", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "trace.json").read_text())
    assert written["traceEvents"] == traced
    assert {event["ph"] for event in traced} == set(REQUIRED)
    processes = {event["pid"]: event["args"]["name"] for event in traced if event["name"] == "process_name"}
    assert processes == {HOST_PID: "host", 2: "vm a", 3: "vm b"}
    threads = {(event["pid"], event["tid"]) for event in traced if event["name"] == "thread_name"}
    for event in traced:
        for field, kind in REQUIRED[event["ph"]].items():
            assert isinstance(event[field], kind), event
        assert 0 <= event.get("ts", 0) <= 10_000_000
        assert event["pid"] in processes
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values()), event
        if event["ph"] in "Xi":
            assert (event["pid"], event["tid"]) in threads
            assert event.get("s", "t") in ("g", "p", "t")


def test_counters_are_those_of_the_samples_and_the_ledger(directory: Path, traced: list[dict[str, Any]]) -> None:
    memory = [event for event in traced if event["name"] == "memory" and event["pid"] == 2]
    peak = max(event["args"]["resident_bytes"] for event in memory)
    results = read_results(directory)
    resident = SAMPLE_COLUMNS.index("resident_bytes")
    assert peak == max(row[resident] for row in results.samples.rows if row[1] == "a") >= 16 * MIB
    assert all(first["args"] != second["args"] for first, second in pairwise(memory))
    ledger = [event for event in traced if event["name"] == "ledger"]
    assert ledger
    total = LEDGER_COLUMNS.index("not_returned_bytes")
    assert sum(ledger[-1]["args"].values()) in [row[total] for row in results.ledger.rows]


def test_phases_follow_one_another_and_decisions_have_reasons(traced: list[dict[str, Any]]) -> None:
    phases = [event for event in traced if event["ph"] == "X" and (event["pid"], event["tid"]) == (2, PHASES_TID)]
    assert [event["name"] for event in phases] == ["boot", *("fill", "hold", "free", "rest") * 2]
    assert all(before["ts"] + before["dur"] <= after["ts"] for before, after in pairwise(phases))
    assert [event["dur"] for event in phases if event["name"] == "hold"] == [2_000_000] * 2
    idle = [event for event in traced if event["ph"] == "X" and event["pid"] == 3]
    assert idle[-1]["name"] == "idle"
    assert idle[-1]["ts"] + idle[-1]["dur"] == 10_000_000  # until the run's end
    decisions = [event for event in traced if event.get("tid") == POLICY_TID and event["ph"] == "i"]
    assert len(decisions) == 6
    assert all("host" in event["args"]["reason"] for event in decisions)


def test_what_cannot_be_read_is_one_line(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "absent"), "--to", "json"]) == 1
    assert "not the results of a run: summary.json: No such file" in capsys.readouterr().err
    for name in ("summary.json", "events.jsonl", "decisions.jsonl", "samples.csv", "ledger.csv"):
        (tmp_path / name).write_text((directory / name).read_text())
    (tmp_path / "events.jsonl").write_text('{"t": 1.0, "event": "a"}\n{"t": 2\n')
    assert main(["export", str(tmp_path), "--to", "json"]) == 1
    assert f"{tmp_path}/events.jsonl: line 2: " in capsys.readouterr().err
    (tmp_path / "ledger.csv").write_text("t,vm\n")
    (tmp_path / "events.jsonl").write_text("")
    assert main(["export", str(tmp_path), "--to", "json"]) == 1
    assert f"{tmp_path}/ledger.csv: line 1: the columns are not t, vm, not_returned_bytes" in capsys.readouterr().err
