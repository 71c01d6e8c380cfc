"""The reports of a run: one that cannot be written takes nothing from the others."""

import json
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest

from protocol.errors import BalloonError, UsageError
from scripts.check.clauses.clause import Bound
from scripts.check.judge import Reports, judge
from scripts.check.suite import Suite


def reports_to(**files: Path) -> Reports:
    return Reports(Namespace(**{"format": "table", "verbose": True, "json": None, "junit": None, "ktap": None} | files))


def run(reports: Reports) -> int:
    suite = Suite[None]("trial")

    @suite.case("passes", clauses=("S-1",))
    def _passes(_: None) -> None:
        """It is right."""

    with reports:
        return judge(reports, list(suite), lambda: nullcontext(None), "a target", [Bound.DEVICE])


@pytest.mark.parametrize("full", ["ktap", "junit", "json"])
def test_a_report_that_cannot_be_written_is_told_after_the_others(
    full: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / name for name in ("ktap", "junit", "json")} | {full: Path("/dev/full")}
    with pytest.raises(BalloonError, match=f"^--{full} /dev/full: No space left on device$"):
        run(reports_to(**files))
    assert "a target: 1 PASS" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"ktap", "junit", "json"} - {full}


def test_reports_are_in_place_after_the_run(tmp_path: Path) -> None:
    path = tmp_path / "report"
    assert run(reports_to(json=path)) == 0
    assert json.loads(path.read_text())["results"][0]["case"] == "passes"


def test_a_file_that_cannot_be_opened_leaves_nothing_of_the_others(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--json .*: No such file or directory$"):
        reports_to(ktap=tmp_path / "ktap", json=tmp_path / "none" / "json")
    assert list(tmp_path.iterdir()) == []


def test_case_with_a_fault_of_its_own_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    suite = Suite[None]("trial")

    @suite.case("faulty", clauses=("S-1",))
    def _faulty(_: None) -> None:
        """It is right."""
        raise ZeroDivisionError

    with reports_to() as reports:
        assert judge(reports, list(suite), lambda: nullcontext(None), "a target", [Bound.DEVICE]) == 3
    said = capsys.readouterr()
    assert said.err == "balloon-check: cases with a fault of their own have judged nothing: faulty\n"
    assert "1 NOT EXERCISED" in said.out
