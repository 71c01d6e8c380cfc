"""The cases of a driver over observations made by hand: what is right passes, each wrong is found."""

import struct
from typing import Any

import pytest

from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature
from scripts.check.driver.all_cases import DRIVER_CASES
from scripts.check.driver.observation import Observed, SeenChain
from scripts.check.verdict import Outcome, Verdict

MIB = 1 << 20
FEATURES = feature_mask(
    FeatureBit.VERSION_1,
    FeatureBit.RING_EVENT_IDX,
    BalloonFeature.STATS_VQ,
    BalloonFeature.FREE_PAGE_HINT,
    BalloonFeature.PAGE_REPORTING,
)
STATISTICS = struct.pack("<HQHQ", 4, 1 << 30, 5, 1 << 31)


def chain(queue: str, **fields: Any) -> SeenChain:
    """Return a chain as a well-behaved driver makes it, but for ``fields``."""
    places = {"inflate": 0, "deflate": 1, "stats": 2, "free_page": 3, "reporting": 4}
    made: dict[str, Any] = {"t": 3.0, "queue": queue, "index": places[queue], "indirect": False}
    if queue == "reporting":
        made |= {"readable": [], "writable": [(64 * MIB, 4 * MIB), (128 * MIB, 4 * MIB)]}
    else:
        data = STATISTICS if queue == "stats" else struct.pack("<2I", 100, 101)
        made |= {"readable": [(MIB, len(data))], "writable": [], "data": data.hex()}
    return SeenChain(**{**made, **fields})


def well_behaved() -> Observed:
    """Return what a driver without a fault shows."""
    seen = Observed(offered=FEATURES)
    seen.events = [{"event": "features", "t": 1.0, "negotiated": FEATURES}]
    seen.chains = [
        chain("stats"),
        chain("stats"),
        chain("reporting"),
        chain("free_page", readable=[(MIB, 4)], data="02000000"),
        chain("free_page", readable=[], writable=[(64 * MIB, 4 * MIB)], data=""),
        chain("free_page", readable=[(MIB, 4)], data="00000000"),
        chain("inflate"),
        chain("deflate"),
    ]
    seen.marks = {"balloon": 8192, "reached": 8192, "left": 0, "statistics": 1, "ended_by_us": True}
    return seen


def verdict_on(seen: Observed, case: str) -> tuple[Verdict, str]:
    """Return the verdict of a case, and its reason."""
    try:
        DRIVER_CASES[case].run(seen)
    except Outcome as outcome:
        return outcome.verdict, outcome.reason
    return Verdict.PASS, ""


# What is a finding of every driver.
TOLD = {"driver-queue-numbers", "driver-report-pace", "driver-statistics-order"}


@pytest.mark.parametrize("case", sorted(one.name for one in DRIVER_CASES))
def test_well_behaved_driver_passes(case: str) -> None:
    verdict, reason = verdict_on(well_behaved(), case)
    if case in TOLD:
        assert verdict is Verdict.FINDING
    elif case == "driver-must-tell-host":
        assert verdict is Verdict.NOT_EXERCISED
    else:
        assert (verdict, reason) == (Verdict.PASS, "")


def replaced(queue: str, number: int, **fields: Any) -> Observed:
    """Return a well-behaved driver but for one chain of a queue."""
    seen = well_behaved()
    places = [at for at, one in enumerate(seen.chains) if one.queue == queue]
    seen.chains[places[number]] = chain(queue, **fields)
    return seen


def with_event(name: str, **fields: Any) -> Observed:
    """Return a well-behaved driver, and one more event."""
    seen = well_behaved()
    seen.events.append({"event": name, "t": 4.0, **fields})
    return seen


def with_fault(name: str, **fields: Any) -> Observed:
    """Return a well-behaved driver, and something that the device noticed."""
    seen = well_behaved()
    seen.faults.append({"fault": name, **fields})
    return seen


def with_marks(**marks: Any) -> Observed:
    """Return a well-behaved driver in another scenario."""
    seen = well_behaved()
    seen.marks |= marks
    return seen


def with_features(features: int) -> Observed:
    """Return a driver that accepted these features."""
    seen = well_behaved()
    seen.events = [{"event": "features", "t": 1.0, "negotiated": features}]
    return seen


FAIL, FINDING = Verdict.FAIL, Verdict.FINDING


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
        ("driver-statistics", with_marks(statistics=2), FAIL, "asked for 2 times"),
        ("driver-statistics-one", replaced("stats", 1, ahead=1), FAIL, "in hand"),
        ("driver-statistics-form", replaced("stats", 1, data="0400"), FAIL, "2 bytes"),
        ("driver-statistics-form", replaced("stats", 1, data=STATISTICS[:10].hex()), FAIL, "[4, 5]"),
        ("driver-hint-commands", replaced("free_page", 0, readable=[(MIB, 8)]), FAIL, "8 bytes"),
        ("driver-hint-commands", replaced("free_page", 0, readable=[], data=""), FAIL, "no command"),
        ("driver-hint-commands", replaced("free_page", 2, readable=[(MIB, 4)], data="02000000"), FAIL, "than once"),
    ],
)
def test_wrong_is_found(case: str, seen: Observed, verdict: Verdict, words: str) -> None:
    found, reason = verdict_on(seen, case)
    assert found is verdict
    assert words in reason


def test_driver_that_goes_away_is_found() -> None:
    seen = with_event("disconnected", reason="end of stream")
    assert verdict_on(seen, "driver-attached")[0] is Verdict.PASS  # the scenario has ended it
    seen.marks["ended_by_us"] = False
    assert verdict_on(seen, "driver-attached") == (FAIL, "the driver went away: end of stream")


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
    seen.take_lines([first.line(), '{"kind": "offered", "features": 38}', '{"kind": "unkicked", "queue": 2}'])
    assert seen.chains == [first]
    assert seen.offered == 38
    assert seen.faults_of("unkicked") == [{"fault": "unkicked", "queue": 2}]
