"""The clauses that a FAIL names: those that say MUST, that it is about, and that are of the ring's format."""

import ast
from collections.abc import Iterator

import pytest

from guest.virtqueue.virtqueue import UsedBuffer
from protocol.errors import VhostUserError
from protocol.ring_formats import RingLayout
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from scripts.check.blame import COMES_BACK, blamed
from scripts.check.clauses.clause import Level
from scripts.check.clauses.table import CLAUSES
from scripts.check.device.all_cases import DEVICE_CASES
from scripts.check.device.cases.reporting import check_used_length
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.driver.command import case_of_format
from scripts.check.driver.observation import Observed, SeenChain
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.memory_file import MemoryFile
from scripts.check.ring_clauses import blaming_format
from scripts.check.verdict import Failed, Found, HungUpError, NotAnswered, NotReturned, Outcome, TargetError
from tests.harness.processes import ROOT

REPORT_EXACT = DEVICE_CASES["report-exact/split"].clauses


@pytest.mark.parametrize(
    ("error", "exercised", "clauses"),
    [
        (HungUpError("gone"), ("BR-7", "M-safe", "F-discard"), ("M-alive",)),
        (ConnectionResetError("gone"), ("BR-7", "V-41"), ("M-alive",)),
        (TargetError("QEMU ended"), ("BR-7",), ("M-alive",)),
        (NotReturned("nothing came", "S-17"), ("BR-7", "M-safe", "F-discard"), ("S-17",)),
        (NotReturned("nothing came", "P-16"), ("M-alive", "V-41", "M-safe"), ("V-41",)),
        (NotAnswered("no reply"), ("BR-7", "M-safe", "V-10", "V-12"), ("V-10",)),
        (NotAnswered("no reply"), ("BR-7", "M-safe"), ("V-9",)),
        (Failed("it is wrong"), ("BR-7", "M-safe", "F-discard", "G-8"), ("M-safe",)),
        (Failed("it is wrong", "BR-7", "BR-3"), ("BR-7", "M-safe"), ("BR-3",)),
        (VhostUserError("refused"), ("BR-7", "M-safe", "V-36", "F-discard"), ("V-36",)),
        (VhostUserError("refused"), ("BC-1", "BI-11", "S-5", "M-safe"), ("BC-1",)),
        (Found("it is odd"), ("BR-7", "F-discard"), ("BR-7", "F-discard")),
        (Found("it is odd", "F-discard"), ("BR-7", "F-discard"), ("F-discard",)),
    ],
)
def test_clauses_that_an_end_is_about(error: Exception, exercised: tuple[str, ...], clauses: tuple[str, ...]) -> None:
    assert blamed(error, exercised) == clauses


def test_clauses_of_buffers_that_come_back_say_must() -> None:
    assert {CLAUSES[one].level for one in COMES_BACK} == {Level.MUST}


@pytest.mark.parametrize(("packed", "clause"), [(False, "S-17"), (True, "P-16")])
def test_queue_whose_buffer_stays_away_names_its_clause(packed: bool, clause: str) -> None:
    memory = MemoryFile()
    queue = DriverQueue(
        memory,
        0,
        0,
        BalloonQueue.REPORTING,
        RingLayout(8, packed),
        0,
        send_kick=lambda: None,
        take_interrupt=lambda: False,
    )
    try:
        queue.offer((), [(0x100000, 4096)])
        with pytest.raises(NotReturned) as caught:
            queue.collect(seconds=0.01)
        assert blamed(caught.value, REPORT_EXACT) == ("S-17",)  # which that case names itself
        assert blamed(caught.value, ("BR-7", "M-safe")) == (clause,)
    finally:
        queue.close()
        memory.close()


@pytest.mark.parametrize(("packed", "clauses"), [(False, ("S-17",)), (True, ("P-16",))])
def test_used_length_names_the_clause_of_the_ring(packed: bool, clauses: tuple[str, ...]) -> None:
    def run(length: int) -> None:
        check_used_length(UsedBuffer(0, length), 4096)

    with pytest.raises(Failed) as caught:
        blaming_format(run, packed=packed)(1)
    assert caught.value.clauses == clauses


def test_split_clause_has_its_counterpart_with_a_packed_ring() -> None:
    def run(clause: str) -> None:
        raise Failed("it is wrong", clause)

    def named(clause: str) -> tuple[str, ...]:
        with pytest.raises(Outcome) as caught:
            blaming_format(run, packed=True)(clause)
        return caught.value.clauses

    assert (named("S-3"), named("S-11"), named("BR-3")) == (("P-9",), (), ("BR-3",))


def test_case_of_a_driver_names_clauses_of_its_ring() -> None:
    seen = Observed(chains=[SeenChain(t=0.0, queue="stats", index=2, readable=[], writable=[(0, 10)], indirect=False)])
    seen.events.append({"event": "features", "negotiated": feature_mask(BalloonFeature.STATS_VQ)})
    for packed, clauses in ((False, ("S-3",)), (True, ("P-9",))):
        with pytest.raises(Failed) as caught:
            case_of_format(DRIVER_CASES["driver-statistics-form"], packed=packed).run(seen)
        assert caught.value.clauses == clauses


def named_by_failures() -> Iterator[tuple[str, str]]:
    """Yield each clause that a FAIL names, and where."""
    for path in (ROOT / "scripts/check").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"Failed", "NotReturned", "require", "check_gone"}:
                for one in ast.walk(node):
                    if isinstance(one, ast.Constant) and one.value in CLAUSES:
                        yield f"{path.name}:{one.lineno}", str(one.value)


def test_failures_name_what_says_must() -> None:
    named = list(named_by_failures())
    assert len(named) > 100
    assert [(where, clause) for where, clause in named if CLAUSES[clause].level is not Level.MUST] == []
