"""Score and result files of a run."""

import csv
import json
from pathlib import Path

import pytest

from host.policy.policy import Reclaim, SetBalloon
from protocol.errors import BalloonError
from protocol.units import GIB, MIB
from scripts.scenario.map_series import MapRound, MapSeries
from scripts.scenario.results import LEDGER_COLUMNS, prepare_directory, summary, write_results
from scripts.scenario.run_record import (
    LEDGER_CAUSES,
    LedgerEntry,
    RecordedDecision,
    RunRecord,
    Sample,
    VmOutcome,
    VmSample,
    VmState,
)
from scripts.scenario.scenario import Scenario, VmSpec
from scripts.scenario.score import score_of


def record() -> RunRecord:
    specs = tuple(VmSpec(name=name, memory_bytes=GIB) for name in ("a", "b"))
    scenario = Scenario(name="s", title="S", budget_bytes=2 * GIB, duration=10.0, vms=specs)
    ledger = LedgerEntry(causes={"delay": 3 * MIB, "watermark": MIB}, page_cache_bytes=7)
    vms = {
        "a": VmSample(state=VmState.RUNNING, resident_bytes=GIB, ledger=ledger),
        "b": VmSample(state=VmState.WAITING),
    }
    return RunRecord(
        scenario=scenario,
        policy="p",
        seed=3,
        is_virtual=True,
        samples=[Sample(t=0.5, used_bytes=GIB, pressure=1.25, vms=vms)],
        events=[{"t": 1.0, "event": "oom_killed", "vm": "b"}, {"t": 2.0, "event": "out_of_memory", "vm": "a"}],
        decisions=[
            RecordedDecision(
                t=0.0, policy="p", reason="r", inputs={"host": {}}, actions=(SetBalloon("a", 5), Reclaim("b"))
            ),
            RecordedDecision(t=1.0, policy="p", reason="r", actions=(SetBalloon("a", 5), Reclaim("b", 9)), error="bad"),
            RecordedDecision(t=2.0, policy="p", reason="r", actions=(SetBalloon("a", 0), SetBalloon("b", 0))),
        ],
        outcomes={
            "a": VmOutcome(state=VmState.FINISHED, refaulted_bytes=1, stall_seconds=0.25, reclaim_cpu_seconds=2.0),
            "b": VmOutcome(state=VmState.OOM_KILLED, reason="too large", refaulted_bytes=2, stall_seconds=0.5),
        },
        seconds=10.0,
        peak_bytes=GIB,
        gib_minutes=0.125,
        maps=MapSeries(interval=1.0, rounds=[MapRound(0.5, {"a": {"cell_bytes": MIB, "resident": "i1024"}})]),
    )


def test_events_are_written_in_order_of_time(tmp_path: Path) -> None:
    late = record()
    late.events.reverse()
    write_results(late, tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["t"] for event in events] == [1.0, 2.0]


def test_score() -> None:
    assert score_of(record()).as_json() == {
        "host_gib_minutes": 0.125,
        "peak_bytes": GIB,
        "refaulted_bytes": 3,
        "stall_seconds": 0.75,
        "oom_events": 2,
        "control_actions": 4,  # a balloon of 5, and of 0 again; two reclaims
        "reclaim_cpu_seconds": 2.0,
        "finished_vms": 1,
        "killed_vms": 1,
        "corrupted_pages": 0,
        "daemon_cpu_seconds": None,
        "faulty_decisions": 1,
    }


def test_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    prepare_directory(out)
    write_results(record(), out)
    assert json.loads((out / "summary.json").read_text()) == summary(record())
    assert summary(record())["vms"]["b"]["state"] == "oom-killed"
    assert [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()] == [
        "oom_killed",
        "out_of_memory",
    ]
    first, second, _ = (json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines())
    assert first == {
        "t": 0.0,
        "policy": "p",
        "reason": "r",
        "inputs": {"host": {}},
        "actions": [{"action": "balloon", "vm": "a", "size": 5}, {"action": "reclaim", "vm": "b", "size": None}],
    }
    assert second["problem"] == "bad"
    with (out / "ledger.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == LEDGER_COLUMNS == ("t", "vm", "not_returned_bytes", *LEDGER_CAUSES, "page_cache_bytes")
    assert [(row["t"], row["vm"]) for row in rows] == [("0.5", "a")]  # b has no ledger
    assert int(rows[0]["not_returned_bytes"]) == sum(int(rows[0][cause]) for cause in LEDGER_CAUSES) == 4 * MIB
    assert rows[0]["page_cache_bytes"] == "7"
    (line,) = (out / "maps.jsonl").read_text().splitlines()
    assert json.loads(line) == {"t": 0.5, "vm": "a", "cell_bytes": MIB, "resident": "i1024"}
    with (out / "samples.csv").open() as file:
        samples = list(csv.DictReader(file))
    assert [(row["vm"], row["state"], row["resident_bytes"]) for row in samples] == [
        ("a", "running", str(GIB)),
        ("b", "waiting", "0"),
    ]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BalloonError, match=r"^--out .*file: "):
        prepare_directory(tmp_path / "file")
