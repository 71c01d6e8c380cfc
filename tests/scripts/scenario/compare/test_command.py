"""``balloon-lab compare``: the table, the files, the same scores from one process and from several."""

import csv
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from scripts.laboratory.__main__ import main
from scripts.scenario.compare import all_scenarios, jobs
from scripts.scenario.compare.command import EPILOG
from scripts.scenario.compare.jobs import play_all
from scripts.scenario.compare.variant import variants
from scripts.scenario.scenario_file import load_scenario, shipped_scenarios
from tests.harness.processes import DEADLINE

SMALL = """\
title = "Two machines"
duration = "20s"
sample = "1s"

[host]
memory = "512M"

[[vm]]
name = "a"
count = 2
memory = "256M"
reporter = "rotation"
workloads = ["churn:size=100M,seconds=10,lifetime=2,tick=0.5", "idle:seconds=5"]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def test_table_and_files(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["compare", str(small), "--vary", "reporter=rotation,none", "--seeds", "3", "--jobs", "1"]
    assert main([*words, "--out", str(out), "--json", str(tmp_path / "scores.json")]) == 0
    captured = capsys.readouterr()
    assert "Two machines: 3 seeds each" in captured.out
    row = next(line for line in captured.out.splitlines() if "reporter=none" in line)
    assert "*" in row  # without reporting the host keeps more
    assert "6 of 6 runs" in captured.err
    runs = json.loads((tmp_path / "scores.json").read_text())["runs"]
    assert [(run["variant"], run["seed"]) for run in runs[:4]] == [
        ("reporter=rotation", 0),
        ("reporter=rotation", 1),
        ("reporter=rotation", 2),
        ("reporter=none", 0),
    ]
    assert all(
        run["host_gib_minutes"] < other["host_gib_minutes"] for run, other in zip(runs[:3], runs[3:], strict=True)
    )
    rows = list(csv.DictReader((out / "compare.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert {(row["scenario"], row["duration"], row["scale"]) for row in rows} == {("small", "20.0", "1.0")}
    assert [file.name for file in out.iterdir()] == ["compare.csv"]


def test_the_examples_name_shipped_scenarios() -> None:
    names = re.findall(r"balloon-lab compare ([a-z0-9-]+) ", EPILOG)
    assert {name for name in names if not name.startswith("--")} <= shipped_scenarios().keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vary", "policy=stedy"], "did you mean steady"),
        (["--seeds", "0"], "not from 1 to 10000"),
        (["--vary", "order=99"], "order"),
        (["--minutes", "-1"], "not 0 or more"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["compare", str(small), "--jobs", "1", *words])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.processes
def test_a_table_that_cannot_be_written_is_printed(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "compare.csv").mkdir(parents=True)
    words = ["compare", str(small), "--vary", "policy=reporting", "--seeds", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    output, errors = capsys.readouterr()
    assert "reporting" in output
    assert errors.endswith("compare.csv: Is a directory\n")


FAULTY = """
import os

class Faulty:
    name, interval = "faulty", 1.0
    def decide(self, seen):
        raise ValueError

class Deadly(Faulty):
    def decide(self, seen):
        os._exit(3)
"""


@pytest.mark.processes
@pytest.mark.parametrize("policy", ["Faulty", "Deadly"])
def test_a_faulty_policy_is_told_beside_its_figures(
    policy: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_policies.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["compare", str(small), "--seeds", "1", "--jobs", "1"]
    assert main([*words, "--vary", f"policy=reporting,faulty_policies:{policy}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "faulty, and the last one stood" in line]
    assert [line.partition(": ")[0] for line in lines] == [f"  policy=faulty_policies:{policy}"]


def die(_scenario: object, _seed: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_one_line(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "play", die)
    assert main(["compare", str(small), "--seeds", "2", "--jobs", "2", "--vary", "policy=reporting,steady"]) == 1
    errors = capsys.readouterr().err
    assert "balloon-lab compare: a process that played runs has ended: " in errors
    assert "Traceback" not in errors


def test_several_processes_give_the_same_scores(small: Path) -> None:
    scenarios = [variant.scenario for variant in variants(load_scenario(small), ["reporter=rotation,none"])]
    assert play_all(scenarios, [0, 1], processes=2) == play_all(scenarios, [0, 1], processes=1)


@pytest.mark.processes
def test_a_dask_cluster_gives_the_same_scores(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    scenarios = [variant.scenario for variant in variants(load_scenario(small), ["reporter=rotation,none"])]
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster:
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "CONNECT_SECONDS", 1.0)
            assert main(["compare", str(small), "--seeds", "1", "--cluster", cluster.scheduler_address]) == 1
        assert "that scheduler has no workers" in capsys.readouterr().err
        cluster.scale(1)
        cluster.wait_for_workers(1, timeout=DEADLINE)
        assert play_all(scenarios, [0], cluster=cluster.scheduler_address) == play_all(scenarios, [0], processes=1)


def test_an_address_without_a_scheduler_is_one_line(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(jobs, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address, reason in (
            ("tcp://127.0.0.1:9", "no Dask scheduler answers"),
            (f"tcp://127.0.0.1:{silent.getsockname()[1]}", "no Dask scheduler answers there within 0.2 s"),
            ("nowhere://x", "--cluster nowhere"),
        ):
            assert main(["compare", str(small), "--seeds", "1", "--cluster", address]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert reason in line


def test_without_distributed_the_extra_is_named(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["compare", str(small), "--seeds", "1", "--cluster", "tcp://127.0.0.1:9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "extra `cluster`" in line
    assert "pip install 'distributed" in line


def test_all_scenarios_take_no_other_choice(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes: list[list[str]] = [
        [str(small), "--all"],
        ["--all", "--vary", "policy=mom"],
        [],
        [str(small), "--markdown", "x"],
        [str(small), "--minutes", "1"],
    ]
    for words in mistakes:
        assert main(["compare", *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) <= 2


def test_all_scenarios_go_on_where_they_were_cut_off(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_scenarios, "shipped_scenarios", lambda: {"small": small})
    monkeypatch.setattr(all_scenarios, "POLICIES", ("reporting", "steady"))
    scores, table = tmp_path / "scores.jsonl", tmp_path / "table.md"
    words = ["compare", "--all", "--seeds", "2", "--jobs", "1", "--scores", str(scores)]
    assert main([*words, "--minutes", "0"]) == 1
    assert "no scenario has been played" in capsys.readouterr().err
    assert main(words) == 0
    assert "4 of 4 runs" in capsys.readouterr().err
    whole = scores.read_text()
    assert [json.loads(line)["seed"] for line in whole.splitlines()] == [0, 0, 1, 1]
    scores.write_text(whole[:-20])
    assert main([*words, "--minutes", "0", "--markdown", str(table)]) == 0
    assert "| small (1 seed) |" in table.read_text()
    assert main(words) == 0
    assert "1 of 1 runs" in capsys.readouterr().err
    assert main([*words, "--minutes", "0", "--markdown", str(table)]) == 0
    assert "| small |" in table.read_text()
    small.write_text(SMALL.replace("size=100M", "size=90M"))
    assert main([*words, "--minutes", "0"]) == 1  # they were the scores of another scenario


def test_scores_that_cannot_be_kept_are_one_line(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_scenarios, "shipped_scenarios", lambda: {"small": small})
    assert main(["compare", "--all", "--scores", str(small / "x")]) == 1
    assert capsys.readouterr().err.startswith("balloon-lab compare: --scores ")
