"""Reports and rings: what a driver gives away, how it asks to be served, and what it does before the answer."""

from collections import Counter

from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature, feature_bit_names
from scripts.check.driver.observation import UNKNOWN_FEATURE, Observed
from scripts.check.driver.suite import SUITE
from scripts.check.verdict import Failed, Found, require, skip
from scripts.check.words import counted, were

MIB = 1 << 20
LARGE = 2 * MIB

NO_DRIVERS = feature_mask(FeatureBit.VHOST_USER_F_PROTOCOL_FEATURES, FeatureBit.VHOST_F_LOG_ALL, UNKNOWN_FEATURE)
"""Features that no driver takes: they are the front-end's, or have no meaning."""

DEPENDS = ((BalloonFeature.DEVICE_INIT_REPORTED, BalloonFeature.PAGE_REPORTING),)
"""Features that need another one."""


@SUITE.case("driver-attached", clauses=("G-18",))
def attached(seen: Observed) -> None:
    """The driver set its queues up and stayed until the end."""
    gone = seen.named("disconnected")
    if gone and not seen.marks.get("ended_by_us"):
        why = f"{gone[0].get('reason')}; what brings it has to last for the whole time (--seconds)"
        raise Failed(f"the driver went away before the end: {why}", "G-18")


@SUITE.case("driver-features", clauses=("G-5", "G-22"))
def features(seen: Observed) -> None:
    """The driver accepted what was offered only, and VERSION_1."""
    own = feature_mask(FeatureBit.VHOST_USER_F_PROTOCOL_FEATURES)
    extra = (seen.negotiated | seen.accepted) & ~seen.offered & ~own
    depends = [(bit, needs) for bit, needs in DEPENDS if has_feature(seen.accepted, bit)]
    for bit, needs in depends:
        lacks = f"{feature_bit_names(feature_mask(bit))[0]} without {feature_bit_names(feature_mask(needs))[0]}"
        require(has_feature(seen.accepted, needs), f"the driver accepted {lacks}", "G-5")
    extra |= seen.accepted & feature_mask(UNKNOWN_FEATURE)
    names = ", ".join(feature_bit_names(extra))
    require(not extra, f"the driver accepted {names}, which was not offered or has no meaning", "G-5")
    require(seen.has(FeatureBit.VERSION_1), "the driver did not accept VERSION_1", "G-22")


@SUITE.case("driver-must-tell-host", clauses=("BF-1",))
def must_tell_host(seen: Observed) -> None:
    """The driver accepts MUST_TELL_HOST where it is offered."""
    bit = BalloonFeature.MUST_TELL_HOST
    if not seen.offered >> bit & 1:
        skip("MUST_TELL_HOST was not offered")
    if not seen.has(bit):
        raise Found("the driver left MUST_TELL_HOST out, although it was offered", "BF-1")


@SUITE.case("driver-left-out", clauses=("F-features",))
def left_out(seen: Observed) -> None:
    """What the driver left out of what was offered: a finding."""
    left = seen.offered & ~seen.negotiated & ~NO_DRIVERS
    if left:
        raise Found(f"the driver left out {', '.join(feature_bit_names(left))}", "F-features")


@SUITE.case(
    "driver-ring-rules", clauses=("S-3", "S-5", "S-6", "S-7", "S-8", "S-9", "S-13", "P-8", "P-9", "P-11", "P-13")
)
def ring_rules(seen: Observed) -> None:
    """No ring of the driver broke a rule."""
    if not seen.chains:
        skip("the driver sent no buffer")
    for event in seen.named("queue_stopped"):
        raise Failed(f"queue {event.get('queue')}: {event.get('reason')}")


@SUITE.case("driver-kicks", clauses=("S-19", "P-15"))
def kicks(seen: Observed) -> None:
    """The driver kicked whenever the device had asked for it."""
    if not seen.chains:
        skip("the driver sent no buffer")
    missing = Counter(fault["queue"] for fault in seen.faults_of("unkicked"))
    words = ", ".join(f"{count} on queue {queue}" for queue, count in missing.items())
    require(not missing, f"buffers lay in a ring for 1 s without the kick that was asked for: {words}", "S-19", "P-15")


@SUITE.case("driver-interrupt-flags", clauses=("S-14",))
def interrupt_flags(seen: Observed) -> None:
    """avail.flags is 0 with EVENT_IDX, 0 or 1 without."""
    if seen.has(FeatureBit.RING_PACKED):
        skip("packed rings have no avail.flags")
    if not seen.chains:
        skip("the driver sent no buffer")
    allowed = {0} if seen.has(FeatureBit.RING_EVENT_IDX) else {0, 1}
    flags = {chain.avail_flags for chain in seen.chains}
    require(flags <= allowed, f"avail.flags was {sorted(flags)}, allowed are {sorted(allowed)}", "S-14")


@SUITE.case("driver-queue-numbers", clauses=("F-queue-numbers",))
def queue_numbers(seen: Observed) -> None:
    """How the driver numbers its queues: a finding."""
    unknown = seen.named("queue_unknown")
    if unknown:
        raise Found(f"queue {unknown[0]['queue']} is none that any numbering knows", "F-queue-numbers")
    dialect = next((event["dialect"] for event in seen.named("queue_numbers")), "negotiated")
    used = {chain.queue: chain.index for chain in seen.chains}
    words = ", ".join(f"{queue} {index}" for queue, index in sorted(used.items(), key=lambda one: one[1]))
    raise Found(f"queues are numbered by what is {dialect}: {words or 'none was used'}", "F-queue-numbers")


def _reports(seen: Observed) -> list[tuple[int, int]]:
    if not seen.has(BalloonFeature.PAGE_REPORTING):
        skip("the driver did not negotiate PAGE_REPORTING")
    ranges = [one for chain in seen.of("reporting") for one in (*chain.writable, *chain.readable)]
    if not ranges:
        skip("the driver reported nothing")
    return ranges


@SUITE.case("driver-report-untouched", clauses=("BR-3",))
def untouched(seen: Observed) -> None:
    """No reported page is used before its report is acknowledged."""
    _reports(seen)
    touched = [at for chain in seen.of("reporting") for at in chain.touched]
    if touched:
        raise Failed(
            f"{were(len(touched), 'page')} used before the report was acknowledged, the first at {touched[0]:#x}",
            "BR-3",
        )


@SUITE.case("driver-report-direction", clauses=("F-direction",))
def direction(seen: Observed) -> None:
    """Whether reports are in device-writable or readable buffers: a finding."""
    _reports(seen)
    readable = sum(len(chain.readable) for chain in seen.of("reporting"))
    word = f"device-readable buffers ({readable} of them), which QEMU's device leaves alone" if readable else ""
    if word:
        raise Found(f"the driver reports in {word}", "F-direction")


@SUITE.case("driver-report-ranges", clauses=("F-alignment", "F-range"))
def ranges(seen: Observed) -> None:
    """Every reported range is whole pages of the guest's memory, and none is a ring's."""
    found = _reports(seen)
    ragged = [one for one in found if (one[0] | one[1]) % PAGE_SIZE or not one[1]]
    if ragged:
        raise Found(
            f"{counted(len(ragged), 'range')} of no whole pages, the first {ragged[0][1]} bytes at {ragged[0][0]:#x}",
            "F-alignment",
        )
    for event in seen.named("refused"):
        if event["reason"] in ("out_of_range", "crosses_regions", "ring_memory"):
            raise Found(f"a range at {event['gpa']:#x} is refused: {event['reason']}", "F-range")


@SUITE.case("driver-report-large", clauses=("BR-5",))
def large(seen: Observed) -> None:
    """The driver reports large blocks."""
    small = [length for _, length in _reports(seen) if length < LARGE]
    if small:
        reported = f"{were(len(small), 'range')} reported of less than 2 MiB"
        raise Found(f"{reported}, the smallest of {min(small)} bytes", "BR-5")


@SUITE.case("driver-report-once", clauses=("BR-6",))
def once(seen: Observed) -> None:
    """A block that was reported is not reported again before it was used."""
    _reports(seen)
    given: set[tuple[int, int]] = set()
    again = 0
    for chain in seen.chains:
        if chain.queue in ("free_page", "inflate"):
            given.clear()  # whose pages leave the free lists, and are not marked as reported when they are back
        elif chain.queue == "reporting":
            unused = set(chain.unused)
            again += sum(one in given and one in unused for one in chain.writable)
            given.update(chain.writable)
    if again:
        raise Found(f"{were(again, 'range')} reported again although nothing was in there since", "BR-6")


@SUITE.case("driver-report-pace", clauses=("F-report-pace",))
def pace(seen: Observed) -> None:
    """How many ranges a report has, of what size, and how often: a finding."""
    _reports(seen)
    chains = seen.of("reporting")
    most = max(len(chain.writable) + len(chain.readable) for chain in chains)
    sizes = Counter(length for chain in chains for _, length in chain.writable)
    common, count = sizes.most_common(1)[0] if sizes else (0, 0)
    begin = seen.named("features")[-1]["t"]
    how = "in indirect tables" if any(chain.indirect for chain in chains) else "in the ring"
    raise Found(
        f"{counted(len(chains), 'report')} of at most {counted(most, 'range')} {how}, most of {common >> 10} KiB "
        f"({count} of {sum(sizes.values())}); the first {chains[0].t - begin:.1f} s after the features",
        "F-report-pace",
    )
