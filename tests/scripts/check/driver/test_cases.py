"""The cases of a driver over observations made by hand: what is right passes, each wrong is found."""

import pytest

from scripts.check.clauses.clause import Bound, Clause
from scripts.check.clauses.table import CLAUSES
from scripts.check.clauses.unseen import UNSEEN
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.driver.observation import Observed
from scripts.check.edges.coverage import coverage
from scripts.check.edges.table import EDGES, PEERS
from scripts.check.verdict import Verdict
from tests.scripts.check.driver.observed import (
    FEATURES,
    FEWER,
    MIB,
    POISON,
    STATISTICS,
    chain,
    replaced,
    verdict_on,
    well_behaved,
    with_event,
    with_fault,
    with_features,
    with_marks,
)

NOT_TRIED = {
    "driver-must-tell-host",
    "driver-deflated-untouched",
    "driver-relies-on-content",
    "driver-takes-any-content",
    "driver-optional-fields",
}

# What is a finding of every driver.
TOLD = {"driver-queue-numbers", "driver-report-pace", "driver-statistics-order"}


@pytest.mark.parametrize("case", sorted(one.name for one in DRIVER_CASES))
def test_well_behaved_driver_passes(case: str) -> None:
    verdict, reason = verdict_on(well_behaved(), case)
    if case in TOLD:
        assert verdict is Verdict.FINDING
    elif case in NOT_TRIED:
        assert verdict is Verdict.NOT_EXERCISED
    else:
        assert (verdict, reason) == (Verdict.PASS, "")


FAIL, FINDING = Verdict.FAIL, Verdict.FINDING


def without_hints() -> Observed:
    """Return a driver that begins a round of hints and ends it."""
    seen = well_behaved()
    seen.chains = [one for one in seen.chains if one.queue != "free_page" or one.readable]
    return seen


def fewer_free() -> Observed:
    """Return a driver whose free memory does not come back after a round of hints."""
    seen = well_behaved()
    seen.chains = [one for one in seen.chains if one.queue != "free_page" and one.t != 5.5]
    seen.chains += [
        chain("free_page", readable=[], writable=[(64 * MIB, 4 * MIB)], data="", t=4.5),
        chain("stats", data=FEWER.hex(), t=6.0),
    ]
    return seen


def told_host(**fields: object) -> Observed:
    """Return a driver with MUST_TELL_HOST and one deflate."""
    seen = replaced("deflate", 0, **fields)
    seen.events[0] = {"event": "features", "t": 1.0, "negotiated": FEATURES | 1}
    return seen


def gone_after_write() -> Observed:
    """Return a driver that went away after the device wrote into what it reported."""
    seen = with_fault("written", pages=3)
    seen.marks["ended_by_us"] = False
    return seen


def changed(*, packed: bool, is_data: bool) -> Observed:
    """Return a driver that changed a buffer that the device had."""
    return with_fault("changed", queue="inflate", packed=packed, what="byte 3 of its buffers", is_data=is_data)


@pytest.mark.parametrize(
    ("case", "seen", "verdict", "words"),
    [
        ("driver-features", with_features(FEATURES | 1 << 9), FAIL, "bit-9"),
        ("driver-features", with_features(FEATURES & ~(1 << 32)), FAIL, "VERSION_1"),
        ("driver-left-out", with_features(FEATURES & ~(1 << 1)), FINDING, "statistics"),
        ("driver-ring-rules", with_event("queue_stopped", queue=4, reason="a loop"), FAIL, "a loop"),
        ("driver-kicks", with_fault("unkicked", queue=4), FAIL, "1 on queue 4"),
        ("driver-interrupt-flags", replaced("reporting", 0, avail_flags=1), FAIL, "[0, 1]"),
        ("driver-report-untouched", replaced("reporting", 0, touched=[64 * MIB]), FAIL, "0x4000000"),
        ("driver-report-direction", replaced("reporting", 0, readable=[(MIB, MIB)]), FINDING, "readable"),
        ("driver-report-ranges", replaced("reporting", 0, writable=[(MIB + 5, 4096)]), FINDING, "whole pages"),
        ("driver-report-ranges", with_event("refused", reason="out_of_range", gpa=1 << 40), FINDING, "out_of_range"),
        ("driver-report-large", replaced("reporting", 0, writable=[(MIB, 65536)]), FINDING, "65536"),
        ("driver-inflated-untouched", replaced("inflate", 0, touched=[409600]), FAIL, "0x64000"),
        ("driver-inflate-form", replaced("inflate", 0, writable=[(MIB, 4)]), FAIL, "device-writable"),
        ("driver-inflate-form", replaced("deflate", 0, readable=[(MIB, 6)]), FAIL, "6 bytes"),
        ("driver-inflates", with_marks(reached=0), FAIL, "no actual"),
        ("driver-inflates", with_marks(reached=4096), FINDING, "came to 4096"),
        ("driver-deflates", with_fault("deflated_not_inflated", gpa=0), FAIL, "not in the balloon"),
        ("driver-deflates", with_marks(left=4096), FINDING, "stayed in the balloon"),
        ("driver-statistics", with_marks(statistics=3), FAIL, "asked for 3 times"),
        ("driver-statistics-one", replaced("stats", 1, ahead=1), FAIL, "in hand"),
        ("driver-statistics-form", replaced("stats", 1, data="0400"), FAIL, "2 bytes"),
        ("driver-statistics-form", replaced("stats", 1, data=STATISTICS[:10].hex()), FAIL, "[4, 5]"),
        ("driver-hints-given", without_hints(), FINDING, "gave none"),
        ("driver-hints-stop", replaced("free_page", 1, readable=[], writable=[(MIB, MIB)], t=6.0), FINDING, "1 hints"),
        ("driver-hints-released", fewer_free(), FINDING, "4194304 bytes fewer"),
        ("driver-deflates-only-when-asked", replaced("deflate", 0, t=6.2), FAIL, "2 pages"),
        ("driver-deflated-untouched", told_host(touched=[4096]), FAIL, "0x1000"),
        ("driver-inflates", with_marks(balloon=4096, reached=1 << 36), FAIL, "big-endian"),
        ("driver-buffers-unchanged", changed(packed=False, is_data=True), FAIL, "byte 3"),
        ("driver-buffers-unchanged", changed(packed=True, is_data=False), FAIL, "byte 3"),
        ("driver-report-poisoned", replaced("reporting", 0, fills=[POISON, -1], poison=POISON), FAIL, "several values"),
        ("driver-report-poisoned", replaced("reporting", 0, fills=[0], poison=POISON), FAIL, "held 0x0"),
        ("driver-takes-any-content", gone_after_write(), FINDING, "into 3 reported pages"),
        ("driver-relies-on-content", with_features(FEATURES & ~(1 << 4)), FINDING, "0xaaaaaaaa"),
        ("driver-deflated-filled", with_fault("deflated_filled", pages=64, absent=64, filled=0), FINDING, "32 of 96"),
        (
            "driver-hint-commands",
            replaced("free_page", 0, readable=[(MIB, 4)], data="03000000", t=4.2),
            FAIL,
            "device showed 2",
        ),
        ("driver-hint-commands", replaced("free_page", 0, readable=[(MIB, 8)]), FAIL, "8 bytes"),
        ("driver-hint-commands", replaced("free_page", 0, readable=[], data=""), FAIL, "no command"),
        ("driver-hint-commands", replaced("free_page", 2, readable=[(MIB, 4)], data="02000000"), FAIL, "than once"),
    ],
)
def test_wrong_is_found(case: str, seen: Observed, verdict: Verdict, words: str) -> None:
    found, reason = verdict_on(seen, case)
    assert found is verdict
    assert words in reason


def test_every_clause_of_a_driver_has_a_case_or_a_reason() -> None:
    left = coverage([DRIVER_CASES], EDGES, PEERS, CLAUSES, UNSEEN, [Bound.DRIVER, Bound.FRONT_END])
    assert [clause.id for clause in left.clauses] == []
    assert [one for one in left.idle if isinstance(one, Clause)] == []


def test_driver_that_goes_away_is_found() -> None:
    seen = with_event("disconnected", reason="end of stream")
    assert verdict_on(seen, "driver-attached")[0] is Verdict.PASS  # the scenario has ended it
    seen.marks["ended_by_us"] = False
    verdict, reason = verdict_on(seen, "driver-attached")
    assert verdict is FAIL
    assert reason.startswith("the driver went away before the end: end of stream; ")


def test_block_that_is_reported_again_unused_is_found() -> None:
    seen = well_behaved()
    block = (64 * MIB, 4 * MIB)
    seen.chains = [chain("reporting"), chain("reporting", writable=[block], unused=[block])]
    assert verdict_on(seen, "driver-report-once")[0] is FINDING
    seen.chains.insert(1, chain("free_page", writable=[block]))
    assert verdict_on(seen, "driver-report-once")[0] is Verdict.PASS


def test_lines_are_read_back() -> None:
    seen = Observed()
    first = chain("reporting", touched=[4096], unused=[(64 * MIB, 4 * MIB)])
    seen.take_lines(
        [first.line(), '{"kind": "offered", "features": 38, "accepted": 6}', '{"kind": "unkicked", "queue": 2}']
    )
    assert seen.chains == [first]
    assert (seen.offered, seen.accepted) == (38, 6)
    assert seen.faults_of("unkicked") == [{"fault": "unkicked", "queue": 2}]
