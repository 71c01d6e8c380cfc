"""The forms of a report, each read back by a reader of its kind."""

import json
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from scripts.check.clauses.clause import Bound
from scripts.check.clauses.table import CLAUSES
from scripts.check.report.clause_verdicts import NOT_CHOSEN, judge_clauses
from scripts.check.report.json_report import JsonReport
from scripts.check.report.junit import JunitReport
from scripts.check.report.ktap import KtapReport
from scripts.check.report.reporter import Reporter, Summary
from scripts.check.report.table import TableReport
from scripts.check.verdict import Result, Verdict

RESULTS = (
    Result(case="kept", verdict=Verdict.PASS, clauses=("S-17", "BR-7"), seconds=0.25),
    Result(
        case="broken/split",
        verdict=Verdict.FAIL,
        clauses=("S-17", "S-4"),
        broken=("S-17",),
        reason="the used length is 4 instead of 0: <04> & more\x00",
    ),
    Result(case="odd", verdict=Verdict.FINDING, clauses=("F-direction",), broken=("F-direction",), reason="it leaves"),
    Result(case="untried", verdict=Verdict.NOT_EXERCISED, clauses=("BR-8",), reason="PAGE_POISON # is not offered"),
)


def report(kind: str, results: Sequence[Result] = RESULTS) -> str:
    """Return what the reporter of this kind writes for ``results``."""
    lines: list[str] = []
    reporters: dict[str, Reporter] = {
        "table": TableReport(lines.append, width=60, colours=False, verbose=True),
        "ktap": KtapReport(lines.append),
        "junit": JunitReport(lines.append),
        "json": JsonReport(lines.append),
    }
    reporter = reporters[kind]
    reporter.begin("a target", len(results))
    for result in results:
        reporter.result(result)
    clauses = judge_clauses(results, CLAUSES, [Bound.DEVICE])
    reporter.end(Summary(target="a target", results=results, clauses=clauses, seconds=1.5))
    return "\n".join(lines)


def test_clause_has_the_worst_verdict_that_is_about_it() -> None:
    verdicts = {one.clause.id: one.verdict for one in judge_clauses(RESULTS, CLAUSES, [Bound.DEVICE])}
    assert verdicts["S-17"] is Verdict.FAIL
    assert verdicts["S-4"] is Verdict.PASS
    assert verdicts["F-direction"] is Verdict.FINDING
    assert verdicts["BR-8"] is Verdict.NOT_EXERCISED
    assert "BR-1" not in verdicts  # binds the driver


def test_what_a_fail_is_about_has_a_verdict_and_another_roles_clauses_if_a_case_names_them() -> None:
    results = (
        Result(case="stopped", verdict=Verdict.PASS, clauses=("V-33",)),
        Result(case="as-driver", verdict=Verdict.FAIL, clauses=("S-5",), broken=("S-5",), reason="it hangs"),
    )
    alone = {one.clause.id: one.verdict for one in judge_clauses(results, CLAUSES, [Bound.DEVICE])}
    both = {one.clause.id: one.verdict for one in judge_clauses(results, CLAUSES, [Bound.DEVICE], [Bound.BACK_END])}
    assert alone["S-5"] is both["S-5"] is Verdict.FAIL
    assert both["V-33"] is Verdict.PASS
    assert both.keys() - alone.keys() == {"V-33"}


def test_table_breaks_no_name_and_says_once_that_nothing_is_stated() -> None:
    results = (
        Result(case="odd", verdict=Verdict.FINDING, clauses=(), broken=("F-direction",), reason="x" * 9),
        Result(case="bad", verdict=Verdict.FAIL, clauses=(), broken=("M-alive",), reason="it ended"),
    )
    text = report("table", results)
    assert "F-direction (not stated)\n" in text
    assert max(map(len, text.splitlines()[:-1])) <= 60
    assert all(not line.endswith("-") for line in text.splitlines())


def test_json_has_results_and_clauses() -> None:
    document = json.loads(report("json"))
    assert [one["verdict"] for one in document["results"]] == ["PASS", "FAIL", "FINDING", "NOT EXERCISED"]
    assert document["results"][1]["case"] == "broken/split"
    assert document["results"][1]["clauses"] == ["S-17", "S-4"]
    (clause,) = (one for one in document["clauses"] if one["id"] == "S-17")
    assert clause["verdict"] == "FAIL"
    assert clause["cases"] == ["kept", "broken/split"]


def test_junit_is_xml_with_the_failure() -> None:
    root = ElementTree.fromstring(report("junit").split("\n", 1)[1])
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    cases = {f"{case.get('classname')}:{case.get('name')}": case for case in suite}
    failure = cases["balloon-check.split:broken"].find("failure")
    assert failure is not None
    assert "<04> & more" in str(failure.get("message"))
    assert cases["balloon-check.any:untried"].find("skipped") is not None


def test_ktap_has_a_plan_and_a_line_a_case() -> None:
    lines = report("ktap").splitlines()
    assert lines[0] == "KTAP version 1"
    assert "1..4" in lines
    numbered = [line for line in lines if re.match(r"(not )?ok \d", line)]
    assert numbered == [
        "ok 1 kept",
        "not ok 2 broken/split",
        "ok 3 odd",
        "ok 4 untried # SKIP PAGE_POISON no. is not offered",
    ]
    assert lines[-1] == "# Totals: pass:1 fail:1 finding:1 skip:1"


def test_table_is_no_wider_than_the_terminal_and_ends_with_the_sums() -> None:
    text = report("table")
    told = [line for line in text.splitlines() if not line.startswith(("a target", "FAIL", "FINDING"))]
    assert max(map(len, told)) <= 60
    assert text.splitlines()[-1].startswith("a target: 1 PASS, 1 FAIL, 1 FINDING, 1 NOT EXERCISED; ")
    assert "\x1b" not in text


@pytest.mark.parametrize("kind", ["table", "ktap", "junit", "json"])
def test_run_without_results_is_reported(kind: str) -> None:
    assert report(kind, ())


def test_clause_that_was_not_exercised_says_why() -> None:
    document = json.loads(report("json"))
    reasons = {one["id"]: one["reason"] for one in document["clauses"] if one["verdict"] == "NOT EXERCISED"}
    assert reasons["BR-8"] == "PAGE_POISON # is not offered"
    assert reasons["G-14"].startswith("RING_RESET needs a register")
    assert reasons["S-16"] == NOT_CHOSEN
    assert "" not in reasons.values()
    words = " ".join(report("table").split())
    assert "BR-8: PAGE_POISON # is not offered" in words
    assert "RING_RESET needs a register of the transport" in words


def test_one_case_is_not_told_in_the_plural() -> None:
    assert report("table", RESULTS[:1]).startswith("judging a target: 1 case\n")
