"""``balloon-lab report``: the file, and one clear line for what cannot be reported."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.laboratory.__main__ import main
from tests.scripts.scenario.report.small_run import write_small_run


def test_the_file_is_written_into_the_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_small_run(tmp_path / "run")
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"written: {out}/report.html (")
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(out), "--out", str(tmp_path / "x.html"), "--compare", str(out)]) == 0
    assert '"variant":"this run (reporting, seed 1)"' in (tmp_path / "x.html").read_text()


def _rewrite(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda out: (out / name).write_text(change((out / name).read_text()))


def _as_a_pipe(name: str) -> Callable[[Path], object]:
    def damage(out: Path) -> None:
        (out / name).unlink()
        os.mkfifo(out / name)

    return damage


def _other_version(text: str) -> str:
    return json.dumps({**json.loads(text), "format": 99})


def _without_its_score(text: str) -> str:
    return json.dumps({key: value for key, value in json.loads(text).items() if key != "score"})


_DECISION = '{{"t": 1, "reason": "", "actions": [{{"action": "balloon", "vm": "a", "size": {}}}]}}\n'


@pytest.mark.parametrize(
    ("damage", "message", "status"),
    [
        (lambda out: (out / "summary.json").unlink(), "has no results of a run: there is no summary.json", 2),
        (_rewrite("summary.json", lambda text: ""), "summary.json is empty, so the run was killed before", 2),
        (_rewrite("summary.json", lambda text: text[:99]), "summary.json: not JSON", 1),
        (_rewrite("summary.json", _other_version), "these results are of version 99, this program reads 1", 1),
        (_rewrite("summary.json", lambda text: json.dumps(json.loads(text) | {"format": True})), "version True", 1),
        (_as_a_pipe("summary.json"), "summary.json is not an ordinary file", 2),
        (_as_a_pipe("events.jsonl"), "events.jsonl: not an ordinary file", 1),
        (_rewrite("summary.json", lambda text: "[]"), "these results are of version none", 1),
        (_rewrite("summary.json", _without_its_score), "summary.json: 'score' is missing", 1),
        (_rewrite("events.jsonl", lambda text: text + "{"), "events.jsonl, line ", 1),
        (_rewrite("events.jsonl", lambda text: '{"t": 1}\n'), "events.jsonl, line 1: 'event' is missing", 1),
        (_rewrite("samples.csv", lambda text: text.rstrip()[:-30] + "\n"), "samples.csv, line ", 1),
        (_rewrite("samples.csv", lambda text: text.replace(",finished,", ",finished,x")), "is 'x", 1),
        (_rewrite("samples.csv", lambda text: text.splitlines()[0] + "\n"), "the run has no sample", 1),
        (_rewrite("ledger.csv", lambda text: "t,vm\n"), "ledger.csv: column 'not_returned_bytes' is missing", 1),
        (
            _rewrite("maps.jsonl", lambda text: '{"t": 0, "vm": "a"}\n'),
            "maps.jsonl, line 1: 'cell_bytes' is missing",
            1,
        ),
        (_rewrite("events.jsonl", lambda text: '{"t": NaN, "event": "x"}\n'), "events.jsonl, line 1: not JSON", 1),
        (_rewrite("events.jsonl", lambda text: '{"t": 1e400, "event": "x"}\n'), "events.jsonl, line 1: t is no", 1),
        (_rewrite("events.jsonl", lambda text: f'{{"t": 1{"0" * 400}, "event": "x"}}\n'), "the results are broken", 1),
        (_rewrite("events.jsonl", lambda text: "[" * 100_000 + "\n"), "events.jsonl, line 1: not JSON", 1),
        (
            _rewrite("decisions.jsonl", lambda text: _DECISION.format("1e400")),
            "the results are broken (OverflowError",
            1,
        ),
        (_rewrite("decisions.jsonl", lambda text: _DECISION.format('"x"')), "the results are broken (ValueError", 1),
        (_rewrite("summary.json", lambda text: text.replace('"seconds": ', '"seconds": "x", "": ')), "are broken", 1),
        (_rewrite("summary.json", lambda text: text.replace('"seconds": ', '"seconds": 1e400, "": ')), "not finite", 1),
        (_rewrite("samples.csv", lambda text: text + text.splitlines()[-1] + "nan\n"), "no number", 1),
        (lambda out: (out / "decisions.jsonl").unlink(), "decisions.jsonl: No such file or directory", 1),
        (lambda out: (out / "events.jsonl").write_bytes(b"\xff\n"), "events.jsonl: not UTF-8", 1),
    ],
)
def test_results_that_cannot_be_reported_are_one_line(
    damage: Callable[[Path], object], message: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_small_run(tmp_path / "run")
    damage(out)
    assert main(["report", str(out)]) == status
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not (out / "report.html").exists()


def test_a_directory_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "no")]) == 2
    assert "no is not a directory with the results of a run" in capsys.readouterr().err


def test_results_of_compare_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").touch()
    (tmp_path / "compare.csv").touch()
    assert main(["report", str(tmp_path)]) == 2
    assert "give it as --compare beside those of a run" in capsys.readouterr().err


def test_results_without_maps_are_reported(tmp_path: Path) -> None:
    out = write_small_run(tmp_path / "run")
    (out / "maps.jsonl").unlink()
    assert main(["report", str(out)]) == 0
