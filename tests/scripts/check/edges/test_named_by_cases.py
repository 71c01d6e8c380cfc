"""What the cases say that they cover is on the lists."""

import pytest

from scripts.check.clauses.table import CLAUSES
from scripts.check.clauses.unseen import UNSEEN
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.edges.coverage import Coverage, coverage
from scripts.check.edges.table import EDGES, PEERS
from scripts.check.generic.all_cases import GENERIC_CASES


@pytest.fixture(scope="module")
def left() -> Coverage:
    return coverage([DEVICE_CASES, DRIVER_CASES, GENERIC_CASES], EDGES, PEERS, CLAUSES, UNSEEN)


def test_cases_name_nothing_that_is_on_no_list(left: Coverage) -> None:
    assert left.unknown == ()


def test_what_cases_cover_has_no_reason_not_to_be_covered(left: Coverage) -> None:
    assert left.idle == ()
