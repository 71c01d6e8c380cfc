"""The closing summary: the truth in words, and a verdict that a program can use."""

import json
from dataclasses import replace

import pytest

from protocol.units import MIB
from scripts.demonstration.summary import RoundResult, report_dict, summary_lines
from tests.scripts.demonstration.examples import COST, WITH, WITHOUT


def texts(*results: RoundResult, width: int = 79) -> list[str]:
    """Return the lines of the summary."""
    return [line.text for line in summary_lines(results, width)]


def text_of(*results: RoundResult) -> str:
    """Return the summary as one line of words."""
    return " ".join(" ".join(texts(*results)).split())


def test_expected_outcome_has_no_problem() -> None:
    assert WITH.problem is None
    assert WITHOUT.problem is None
    report = report_dict([WITH, WITHOUT])
    assert report["ok"] is True
    assert report["problems"] == []


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (replace(WITH, b_corrupted_pages=3), "with reporting VM B found 3 corrupted pages"),
        (replace(WITH, stopped_by="x"), "with reporting VM B ran out of memory nevertheless"),
        (replace(WITH, b_verified_pages=0), "with reporting VM B ran out of memory nevertheless"),
        (replace(WITHOUT, stopped_by=None), "without reporting VM B should have run out of memory, and did not"),
    ],
)
def test_problem_of_a_round_is_one_line(result: RoundResult, problem: str) -> None:
    assert result.problem == problem
    report = report_dict([result])
    assert report["ok"] is False
    assert report["problems"] == [problem]


def test_report_can_be_written_and_holds_the_costs() -> None:
    report = json.loads(json.dumps(report_dict([WITH, WITHOUT])))
    first, second = report["rounds"]
    assert first["b_completed"] is True
    assert second["b_completed"] is False
    assert first["a_cost"]["peak_resident_bytes"] == 796 * MIB
    assert first["a_cost"]["direct_reclaim_seconds"] is None
    assert first["b_cost"]["direct_reclaim_seconds"] == 0.0125
    assert second["b_cost"] is None
    assert second["stopped_by"] == "the kernel's OOM killer"


def test_words_say_what_the_numbers_say() -> None:
    text = text_of(WITH, WITHOUT)
    assert "both emulated" in text
    assert "768.0 MiB were back with the host 0.2 s later" in text
    assert "every page it wrote was intact" in text
    assert "the host never learned of it and went on carrying 768.0 MiB" in text
    assert "VM B ran out of memory at 390.0 MiB and was killed" in text
    assert "Limit kept by: memory cgroup v1; VM B was stopped by the kernel's OOM killer." in text


def test_real_kernel_is_named() -> None:
    text = text_of(replace(WITH, real=True), replace(WITHOUT, real=True))
    assert "a real Linux kernel and an emulated one" in text


def test_failure_is_not_shown_as_a_success() -> None:
    failed = replace(WITH, a_returned_seconds=None, a_after_bytes=700 * MIB, stopped_by="x", b_verified_pages=None)
    text = text_of(failed, replace(WITHOUT, stopped_by=None))
    assert "68.0 MiB came back to the host" in text
    assert "VM B did not get its 768.0 MiB intact" in text
    assert "which it should have" in text
    assert "intact." not in text.replace("MiB intact:", "")


def test_delay_that_is_not_measured_is_not_zero() -> None:
    lines = texts(WITH, WITHOUT)
    rows = {line[2:26].strip(): line for line in lines if line.startswith("  VM ")}
    assert rows["VM A, with reporting"].endswith("not measured")
    assert rows["VM B, with reporting"].endswith("12 ms (4x)")
    assert "kernel.task_delayacct is 1" in text_of(WITH)
    assert "VM B, without reporting" not in rows


def test_source_of_the_costs_is_named() -> None:
    proc = replace(COST, source="/proc (taskstats: Operation not permitted)", peak_resident_bytes=None)
    text = text_of(replace(WITH, a_cost=proc, b_cost=proc))
    assert "Source: /proc (taskstats: Operation not permitted)." in text
    ended = replace(COST, source=f"{COST.source} and wait4")
    assert "Source: taskstats v16 and wait4." in text_of(replace(WITH, a_cost=COST, b_cost=ended))
    assert "task_delayacct" not in text


def test_lines_fit_a_terminal() -> None:
    long = replace(WITHOUT, stopped_by="this script's accounting", budget_source="this script's accounting")
    for width in (79, 59):
        lines = texts(replace(WITH, budget_source="this script's accounting"), long, width=width)
        assert max(map(len, lines)) <= width


def test_sentence_that_says_it_all_is_last_and_what_led_to_it_is_on_the_same_screen() -> None:
    lines = texts(WITH, WITHOUT)
    assert " ".join(lines[-2:]) == (
        "With free page reporting 1.2 GiB were enough for both VMs, because VM A's memory came back; without it "
        "VM B was killed."
    )
    assert any("with reporting" in line and "without" in line for line in lines[-23:])
    failed = texts(replace(WITH, stopped_by="x"), WITHOUT)
    assert failed[-1] == "Not as expected: with reporting VM B ran out of memory nevertheless."
