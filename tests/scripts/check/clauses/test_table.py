"""The table of clauses, and that every case names clauses that there are."""

import re

import pytest

from scripts.check.clauses.table import CLAUSES
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.generic.all_cases import GENERIC_CASES
from scripts.check.suite import Suite
from tests.harness.syntax import ROOT

SUITES = {"device": DEVICE_CASES, "driver": DRIVER_CASES, "generic": GENERIC_CASES}


def test_ids_are_unique_and_have_one_form() -> None:
    assert len(CLAUSES) > 180
    for id_, clause in CLAUSES.items():
        assert clause.id == id_
        assert re.fullmatch(r"(B[FCISHPR]|[GSPV])-\d+|[MF]-[a-z-]+", id_), id_


def test_statements_are_sentences_that_bind_someone() -> None:
    for clause in CLAUSES.values():
        assert clause.bound, clause.id
        assert clause.section, clause.id
        assert re.fullmatch(r"[A-Za-z][^\n]*\.", clause.statement), clause.id


@pytest.mark.parametrize("name", sorted(SUITES))
def test_cases_name_clauses_that_there_are(name: str) -> None:
    suite: Suite[object] = SUITES[name]  # type: ignore[assignment]
    unknown = {(case.name, clause) for case in suite for clause in case.clauses if clause not in CLAUSES}
    assert unknown == set()


def test_reasons_name_clauses_that_there_are() -> None:
    """Ids also stand in the verdicts that a case gives."""
    form = re.compile(r'"((?:B[FCISHPR]|[GSPVMF])-[a-z0-9-]+)"')
    files = [path for path in (ROOT / "scripts/check").rglob("*.py") if "broken" not in path.parts]
    found = {id_ for path in files for id_ in form.findall(path.read_text(encoding="utf-8"))}
    assert found - set(CLAUSES) == set()
