"""What the cases say that they cover is on the lists, and what is on the lists is covered."""

from collections.abc import Mapping
from typing import Any, Final

import pytest

from scripts.check.clauses.clause import Bound
from scripts.check.clauses.table import CLAUSES
from scripts.check.clauses.unseen import UNSEEN
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.edges.coverage import Coverage, coverage
from scripts.check.edges.table import EDGES, PEERS
from scripts.check.generic.all_cases import GENERIC_CASES
from scripts.check.suite import Suite

ALL_SUITES: Final[tuple[Suite[Any], ...]] = (DEVICE_CASES, DRIVER_CASES, GENERIC_CASES)

JUDGES: Final[Mapping[Bound, tuple[Suite[Any], ...]]] = {
    Bound.DEVICE: (DEVICE_CASES, GENERIC_CASES),
    Bound.BACK_END: (DEVICE_CASES, GENERIC_CASES),
    Bound.DRIVER: (DRIVER_CASES,),
    Bound.FRONT_END: (DRIVER_CASES,),
}
"""Whose clauses have a case each, or a reason why they cannot, and the suites that judge them."""


@pytest.fixture(scope="module")
def left() -> Coverage:
    return coverage(ALL_SUITES, EDGES, PEERS, CLAUSES, UNSEEN)


def test_cases_name_nothing_that_is_on_no_list(left: Coverage) -> None:
    assert left.unknown == ()


def test_what_cases_cover_has_no_reason_not_to_be_covered(left: Coverage) -> None:
    assert left.idle == ()


def test_every_edge_case_has_a_case_or_a_reason(left: Coverage) -> None:
    assert [edge.number for edge in left.edges] == []


def test_every_entry_of_other_suites_has_a_case_or_a_reason(left: Coverage) -> None:
    assert [peer.names for peer in left.peers] == []


@pytest.mark.parametrize("bound", list(JUDGES))
def test_every_clause_has_a_case_or_a_reason(bound: Bound) -> None:
    left = coverage(JUDGES[bound], EDGES, PEERS, CLAUSES, UNSEEN, [bound])
    assert [clause.id for clause in left.clauses] == []
