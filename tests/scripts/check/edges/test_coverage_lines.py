"""What a person is told of coverage: every entry has cases or a reason."""

import pytest

from scripts.check.__main__ import main
from scripts.check.clauses.table import CLAUSES
from scripts.check.edges.table import EDGES, PEERS


def test_every_clause_edge_case_and_entry_has_a_line_with_cases_or_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--coverage"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 2 * (len(CLAUSES) + len(EDGES) + len(PEERS))
    below = [line for line in lines if line.startswith("    ")]
    assert all(line != "    no case: " for line in below)
    at = next(number for number, line in enumerate(lines) if line.startswith("G-14: "))
    assert lines[at + 1].startswith("    no case: RING_RESET")
    at = next(number for number, line in enumerate(lines) if line.startswith("S-17: "))
    assert "device report-exact/split" in lines[at + 1]


def test_generic_cases_are_listed_without_a_socket(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--generic", "--list"]) == 0
    assert "message-in-pieces (quick)" in capsys.readouterr().out


def test_list_ends_with_the_clauses_that_have_no_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--list"]) == 0
    _, _, without = capsys.readouterr().out.partition("clauses without a case:\n")
    assert "    G-14: " in without
    assert "        RING_RESET needs a register of the transport" in without


def test_list_of_faults_says_whose_each_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broken", "--list"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert "used-length-one: device (--serve)" in titles
    assert "statistics-once: driver (--drive)" in titles
    assert {title.partition(": ")[2] for title in titles} == {"device (--serve)", "driver (--drive)", "fence"}
