"""Buffers that the device has, and pages that are given away: what they hold, and that nothing of it changes."""

from typing import Final

from protocol.recording.records import PutBack, RecordedDescriptor, RingStart, TakenChain, UsedChain
from protocol.virtio import FeatureBit
from protocol.virtio_balloon import BalloonFeature
from scripts.check.driver.observation import Observed
from scripts.check.driver.suite import SUITE
from scripts.check.verdict import Failed, Found, require, skip
from scripts.check.words import were

PAGES_ENOUGH: Final = 16
"""Pages of one content that cannot be chance."""


@SUITE.case("driver-buffers-unchanged", clauses=("G-19", "P-6", "P-14", "S-22"))
def buffers_unchanged(seen: Observed) -> None:
    """What was made available is complete then, and neither descriptors nor data change until it is given back."""
    if not seen.chains:
        skip("the driver sent no buffer")
    for fault in seen.faults_of("changed"):
        packed = fault["packed"]
        clauses = ["G-19"] if fault["is_data"] else ["G-19", *(("P-6", "P-14") if packed else ("S-22",))]
        what = f"a buffer of the {fault['queue']} queue was changed while the device had it"
        raise Failed(f"{what}: {fault['what']}", *clauses)


def _rings(seen: Observed) -> dict[int, list[RingStart | TakenChain | UsedChain | PutBack]]:
    rings: dict[int, list[RingStart | TakenChain | UsedChain | PutBack]] = {}
    for record in seen.records:
        if isinstance(record, RingStart | TakenChain | UsedChain | PutBack):
            rings.setdefault(record.ring, []).append(record)
    return rings


@SUITE.case("driver-buffers-apart", clauses=("P-10", "G-19"))
def buffers_apart(seen: Observed) -> None:
    """No descriptor of a buffer that the device has is part of another one: there was room for it."""
    rings = _rings(seen)
    if not any(isinstance(record, TakenChain) for records in rings.values() for record in records):
        skip("no buffer was recorded")
    for ring, records in rings.items():
        in_flight: dict[int, tuple[RecordedDescriptor, ...]] = {}
        for record in records:
            match record:
                case RingStart():
                    in_flight.clear()
                case UsedChain(head=head) | PutBack(head=head):
                    in_flight.pop(head, None)
                case TakenChain(head=head, descriptors=descriptors):
                    taken = {one.place for chain in in_flight.values() for one in chain}
                    shared = sorted(taken.intersection(one.place for one in descriptors))
                    require(not shared, f"queue {ring}: descriptors {shared[:4]} are of two buffers at a time")
                    in_flight[head] = descriptors


@SUITE.case("driver-in-order", clauses=("S-12",))
def in_order(seen: Observed) -> None:
    """With IN_ORDER each buffer's descriptors follow those of the one before in the table."""
    if seen.has(FeatureBit.RING_PACKED) or not seen.has(FeatureBit.IN_ORDER):
        skip("the driver did not negotiate IN_ORDER with a split ring")
    for ring, records in _rings(seen).items():
        size, expected = 0, 0
        for record in records:
            if isinstance(record, RingStart):
                size, expected = record.size, record.base
            elif isinstance(record, TakenChain) and not record.left_out and size:
                for one in record.descriptors:
                    if one.place != expected % size:
                        raise Failed(
                            f"queue {ring}: descriptor {one.place} was used where {expected % size} is next", "S-12"
                        )
                    expected += 1


@SUITE.case("driver-report-poisoned", clauses=("BR-2",))
def report_poisoned(seen: Observed) -> None:
    """With PAGE_POISON pages hold the poison when they are reported."""
    if not seen.has(BalloonFeature.PAGE_POISON):
        skip("the driver did not negotiate PAGE_POISON")
    pages = [(fill, chain.poison) for chain in seen.of("reporting") for fill in chain.fills]
    if not pages:
        skip("no page was there that the driver reported")
    wrong = [(fill, poison) for fill, poison in pages if fill != poison]
    if wrong:
        fill, poison = wrong[0]
        holds = "several values" if fill < 0 else f"{fill:#x}"
        raise Failed(f"{len(wrong)} of {len(pages)} pages did not hold {poison:#x}; the first held {holds}", "BR-2")


@SUITE.case("driver-takes-any-content", clauses=("BR-1",))
def takes_any_content(seen: Observed) -> None:
    """Without PAGE_POISON a driver takes reported pages for uninitialised: it goes on when the device writes there."""
    written = seen.faults_of("written")
    if not written:
        skip("the driver negotiated PAGE_POISON, or had fewer than two reports")
    if not seen.marks.get("ended_by_us"):
        pages = written[0]["pages"]
        raise Found(f"the driver went away after the device had written into {pages} reported pages, as it may", "BR-1")


@SUITE.case("driver-relies-on-content", clauses=("BF-3",))
def relies_on_content(seen: Observed) -> None:
    """Without PAGE_POISON free pages are not kept filled with a value, as by a driver that relies on it."""
    if not seen.has(BalloonFeature.PAGE_REPORTING) or seen.has(BalloonFeature.PAGE_POISON):
        skip("the driver did not negotiate PAGE_REPORTING without PAGE_POISON")
    fills = [fill for chain in seen.of("reporting") for fill in chain.fills]
    if len(fills) < PAGES_ENOUGH:
        # Memory that was never written has no page of its own: a guest that did nothing yet reports only such.
        skip(f"the guest had written {len(fills)} of the pages that it reported, too few to tell: give it a load")
    if len(set(fills)) == 1 and fills[0] > 0:
        raise Found(
            f"all {len(fills)} pages that were looked at hold {fills[0]:#x} when they are reported, and the driver did "
            "not take PAGE_POISON: it must not rely on that",
            "BF-3",
        )


@SUITE.case("driver-deflated-filled", clauses=("BF-2",))
def deflated_filled(seen: Observed) -> None:
    """With PAGE_POISON pages that are taken back are filled with the poison at once."""
    if not seen.has(BalloonFeature.PAGE_POISON):
        skip("the driver did not negotiate PAGE_POISON")
    looks = seen.faults_of("deflated_filled")
    pages, filled = (sum(look[name] for look in looks) for name in ("pages", "filled"))
    if pages < PAGES_ENOUGH:
        skip(f"{were(pages, 'page')} taken back from the balloon, too few to tell")
    # Some are in use again by the time of the look, and hold something else.
    if 2 * filled < pages:
        raise Found(f"half a second after the acknowledgement {filled} of {pages} pages held the poison", "BF-2")
