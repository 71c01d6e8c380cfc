"""The balloon, statistics and hints, as the scenario asked for them."""

import math
import struct
from itertools import pairwise
from typing import Final

from protocol.balloon_statistics import STATISTIC_SIZE, StatisticTag
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonFeature
from scripts.check.driver.observation import Observed, SeenChain
from scripts.check.driver.suite import SUITE
from scripts.check.verdict import Failed, Found, require, skip
from scripts.check.words import counted, were

STOP: Final = 0

HINTING_STOPS: Final = 0.5
"""Seconds after which a driver has seen that hints are not wanted any more, and the hints in its ring are taken."""


def _inflated(seen: Observed) -> list[SeenChain]:
    if "balloon" not in seen.marks:
        skip("no balloon was asked for")
    chains = seen.of("inflate")
    if not chains:
        raise Found(f"the driver gave no page for a balloon of {seen.marks['balloon']} bytes", "BI-1")
    return chains


@SUITE.case("driver-inflates", clauses=("BI-1", "BI-11", "BC-1"), peers=("tp-qemu/balloon_check", "stratovirt/fun_001"))
def inflates(seen: Observed) -> None:
    """The driver gives the pages that are asked for, and says so in actual."""
    _inflated(seen)
    wanted, reached = seen.marks["balloon"], seen.marks.get("reached", 0)
    if reached == wanted:
        return
    given = sum(len(chain.bytes) // 4 for chain in seen.of("inflate")) * 4096
    if reached == 0 and given:
        raise Failed(f"the driver gave {given} bytes and wrote no actual", "BI-11")
    swapped = int.from_bytes((wanted // PAGE_SIZE).to_bytes(4, "little"), "big") * PAGE_SIZE
    require(reached != swapped, f"actual came to {reached // PAGE_SIZE:#x} pages, which is big-endian", "BC-1")
    raise Found(f"{wanted} bytes were asked for, and actual came to {reached}", "BI-1")


@SUITE.case("driver-inflated-untouched", clauses=("BI-9",))
def untouched(seen: Observed) -> None:
    """No page is used between being put on the inflate queue and the acknowledgement."""
    touched = [at for chain in _inflated(seen) for at in chain.touched]
    if touched:
        raise Failed(
            f"{were(len(touched), 'page')} used before the inflate was acknowledged, the first at {touched[0]:#x}"
        )


@SUITE.case("driver-inflate-form", clauses=("BI-6", "S-3"))
def form(seen: Observed) -> None:
    """Page frame numbers come in device-readable buffers of whole numbers."""
    for chain in (*_inflated(seen), *seen.of("deflate")):
        require(not chain.writable, f"the {chain.queue} queue has a device-writable buffer", "S-3")
        length = sum(size for _, size in chain.readable)
        require(length % 4 == 0, f"{length} bytes of page frame numbers are no whole number of them", "BI-6")


@SUITE.case("driver-deflates", clauses=("BI-2", "BI-6", "BI-10"), peers=("tp-qemu/balloon_check", "stratovirt/fun_001"))
def deflates(seen: Observed) -> None:
    """The driver takes pages back through the deflate queue, and only pages that it gave."""
    _inflated(seen)
    strange = seen.faults_of("deflated_not_inflated")
    require(not strange, f"{were(len(strange), 'page')} deflated and not in the balloon", "BI-10")
    if seen.marks.get("left", 0):
        raise Found(f"{seen.marks['left']} bytes stayed in the balloon after none was asked for", "BI-2")
    if not seen.of("deflate"):
        raise Failed("the balloon became smaller without a deflate", "BI-6")


@SUITE.case("driver-deflates-only-when-asked", clauses=("BI-4",))
def deflates_only_when_asked(seen: Observed) -> None:
    """Without DEFLATE_ON_OOM no page is taken back while num_pages is not smaller than actual."""
    if seen.has(BalloonFeature.DEFLATE_ON_OOM):
        skip("the driver negotiated DEFLATE_ON_OOM (--features deflate-on-oom=off)")
    _inflated(seen)
    begin, end = seen.marks.get("kept_from", 0.0), seen.marks.get("kept_to", 0.0)
    early = [chain for chain in seen.of("deflate") if begin < chain.t < end]
    if early:
        pages = sum(len(chain.bytes) // 4 for chain in early)
        raise Failed(f"{were(pages, 'page')} taken back while the balloon was as large as it was asked for", "BI-4")


@SUITE.case("driver-deflated-untouched", clauses=("BI-7",))
def deflated_untouched(seen: Observed) -> None:
    """With MUST_TELL_HOST no page of the balloon is used before its deflate is acknowledged."""
    if not seen.has(BalloonFeature.MUST_TELL_HOST):
        skip("the driver did not negotiate MUST_TELL_HOST")
    deflates = seen.of("deflate")
    if not deflates:
        skip("the driver took no page back")
    touched = [at for chain in deflates for at in chain.touched]
    if touched:
        where = f"the first at {touched[0]:#x}"
        raise Failed(f"{were(len(touched), 'page')} used before the deflate was acknowledged, {where}", "BI-7")


def _statistics(seen: Observed) -> list[SeenChain]:
    if not seen.has(BalloonFeature.STATS_VQ):
        skip("the driver did not negotiate STATS_VQ")
    chains = seen.of("stats")
    if not chains:
        raise Failed("the driver never made a statistics buffer available", "BS-2")
    return chains


@SUITE.case("driver-statistics", clauses=("BS-2", "BS-3", "BS-4"))
def statistics(seen: Observed) -> None:
    """A statistics buffer is there from the start, filled, and another one after each that was used."""
    chains = _statistics(seen)
    require(any(chain.bytes for chain in chains), "every statistics buffer was empty", "BS-4")
    asked = seen.marks.get("statistics", 0)
    if asked and len(chains) <= asked:
        raise Failed(
            f"statistics were asked for {counted(asked, 'time')}, and {counted(len(chains), 'buffer')} came", "BS-3"
        )


@SUITE.case("driver-statistics-one", clauses=("BS-1",))
def one_buffer(seen: Observed) -> None:
    """At most one statistics buffer is available."""
    more = sum(chain.ahead > 0 for chain in _statistics(seen))
    require(not more, f"{counted(more, 'statistics buffer')} came while the one before was in hand", "BS-1")


@SUITE.case("driver-statistics-form", clauses=("BS-5", "BS-8", "S-3"))
def statistics_form(seen: Observed) -> None:
    """Buffers have whole entries, in device-readable memory, and the same statistics each time."""
    sets: list[list[int]] = []
    for chain in _statistics(seen):
        require(not chain.writable, "statistics come in a device-writable buffer", "S-3")
        data = chain.bytes
        require(len(data) % STATISTIC_SIZE == 0, f"{len(data)} bytes are no whole number of entries of 10", "BS-5")
        sets.append([tag for tag, _ in struct.iter_unpack("<HQ", data)])
    for first, second in pairwise(sets):
        require(set(first) == set(second), f"the statistics were {sorted(first)} and then {sorted(second)}", "BS-8")


@SUITE.case("driver-statistics-order", clauses=("F-statistics-tags",))
def statistics_order(seen: Observed) -> None:
    """Which statistics come, and in which order: a finding."""
    tags = [str(tag) for tag, _ in struct.iter_unpack("<HQ", _statistics(seen)[-1].bytes)]
    raise Found(f"statistics come in the order {', '.join(tags)}", "F-statistics-tags")


def _hints(seen: Observed) -> list[SeenChain]:
    if not seen.has(BalloonFeature.FREE_PAGE_HINT):
        skip("the driver did not negotiate FREE_PAGE_HINT")
    chains = seen.of("free_page")
    if not chains:
        skip("no round of hints was begun, or the driver gave none")
    return chains


@SUITE.case("driver-hint-commands", clauses=("BH-1", "BH-2", "BH-3", "BH-6"))
def hint_commands(seen: Observed) -> None:
    """Commands have 4 bytes; a round begins with the device's id, which comes once, and ends with STOP."""
    starts = [(float(event["t"]), event["command_id"]) for event in seen.named("hinting") if event["state"] == "start"]
    commands: list[int] = []
    chains = _hints(seen)
    for chain in chains:
        if chain.readable:
            length = sum(size for _, size in chain.readable)
            require(length == 4, f"a command has {length} bytes", "BH-1")
            commands.append(int.from_bytes(chain.bytes, "little"))
            shown = [id_ for t, id_ in starts if t < chain.t]
            if commands[-1] != STOP and shown and commands[-1] != shown[-1]:
                raise Failed(f"the command id is {commands[-1]}, and the device showed {shown[-1]}", "BH-2")
    require(bool(chains[0].readable), "the first buffer of a round is no command", "BH-2")
    ids = [command for command in commands if command != STOP]
    require(len(ids) == len(set(ids)), f"command ids came more than once: {ids}", "BH-3")
    if commands and commands[-1] != STOP:
        raise Found(f"the last command is {commands[-1]:#x}, not STOP", "BH-6")


@SUITE.case("driver-hints-given", clauses=("BH-4",))
def hints_given(seen: Observed) -> None:
    """The driver hints free pages in writable buffers while a round is on."""
    if not any(chain.writable for chain in _hints(seen)):
        raise Found("a round of hints was on, and the driver gave none in a writable buffer", "BH-4")


@SUITE.case("driver-hints-stop", clauses=("BH-5",))
def hints_stop(seen: Observed) -> None:
    """The driver stops hinting when the command id becomes STOP or DONE."""
    hints = [chain for chain in _hints(seen) if chain.writable]
    states = [(float(event["t"]), str(event["state"])) for event in seen.named("hinting")]
    ends = [t for t, state in states if state != "start"]
    if not ends:
        skip("no round of hints was ended by the device")
    for end in ends:
        begins = [t for t, state in states if state == "start" and t > end]
        until = begins[0] if begins else float("inf")
        late = [chain for chain in hints if end + HINTING_STOPS < chain.t < until]
        if late:
            after = late[-1].t - end
            raise Found(f"{len(late)} hints came after the round was over, the last {after:.1f} s later", "BH-5")


@SUITE.case("driver-hints-released", clauses=("BH-10",))
def hints_released(seen: Observed) -> None:
    """The driver releases hinted pages once the command id is DONE: it gives them again, or says that they are free."""
    begin, end = seen.marks.get("hints", 0.0), seen.marks.get("hinted", 0.0)
    blocks = [one for chain in _hints(seen) if begin < chain.t < end for one in chain.writable]
    hinted = sum(length for _, length in blocks)
    later = {one for chain in (*seen.of("free_page"), *seen.of("reporting")) if chain.t > end for one in chain.writable}
    if not later.isdisjoint(blocks):
        return
    free = [
        (chain.t, value)
        for chain in (_statistics(seen) if hinted else ())
        for tag, value in struct.iter_unpack("<HQ", chain.bytes)
        if tag == StatisticTag.MEMFREE
    ]
    before = [value for t, value in free if t < begin]
    after = [value for t, value in free if end < t < seen.marks.get("hints_again", math.inf)]
    if not before or not after:
        skip("the statistics do not tell how much memory was free before a round of hints and after it")
    # A block that is being reported is not free for that moment.
    if max(after) + hinted // 2 < max(before):
        missing = max(before) - max(after)
        raise Found(f"{hinted} bytes were hinted, and {missing} bytes fewer were free after the round", "BH-10")
