"""Faults in what a device discards, and when."""

import os
import threading
from dataclasses import replace
from typing import Any

from host.balloon import virtio_balloon
from host.balloon.free_page_hinting import FreePageHinting
from host.balloon.virtio_balloon import VirtioBalloon
from host.memory.discard_plan import DeviceMemory, DiscardPlan, Refusal
from host.ring import ring_service
from protocol.errors import VirtqueueError
from protocol.memory import PAGE_SIZE, FileRange
from protocol.virtio_balloon import BalloonQueue
from scripts.check.broken.fault import fault, replaced


def _hole(change: Any) -> None:
    # Have `change(fd, offset, length)` say what is punched instead.
    replaced(ring_service, "punch_hole", lambda original: lambda fd, at, size: original(fd, *change(fd, at, size)))


def _planned(change: Any) -> None:
    # Have `change(discards)` alter the list of what a chain discards.
    def make(original: Any) -> Any:
        def plan(self: Any, *rest: Any) -> DiscardPlan:
            planned: DiscardPlan = original(self, *rest)
            planned.discards = change(planned.discards)
            return planned

        return plan

    replaced(DeviceMemory, "plan", make)


def _punch_and_close(punch: Any, fd: int, offset: int, length: int) -> None:
    punch(fd, offset, length)
    os.close(fd)


@fault("acknowledged-first", caught_by=("report-as-linux/split", "report-as-linux/packed"))
def _() -> None:
    """A report is acknowledged at once and discarded 20 ms later."""

    def make(original: Any) -> Any:
        def punch(fd: int, offset: int, length: int) -> int:
            copy = os.dup(fd)
            threading.Timer(0.02, _punch_and_close, (original, copy, offset, length)).start()
            return 0

        return punch

    replaced(ring_service, "punch_hole", make)


@fault("discarded-twice", caught_by=("report-no-late-discard/split", "inflate-no-late-discard/packed"))
def _() -> None:
    """What was discarded is discarded once more after the acknowledgement."""

    def make(original: Any) -> Any:
        def punch(fd: int, offset: int, length: int) -> int:
            copy = os.dup(fd)
            threading.Timer(0.01, _punch_and_close, (original, copy, offset, length)).start()
            result: int = original(fd, offset, length)
            return result

        return punch

    replaced(ring_service, "punch_hole", make)


@fault("one-page-too-many", caught_by=("report-exact/split", "report-one-page/packed"))
def _() -> None:
    """The page after each range goes, too."""
    _hole(lambda fd, offset, length: (offset, length + PAGE_SIZE))


@fault("one-page-too-few", caught_by=("report-exact/split",))
def _() -> None:
    """The last page of each range of more than one stays."""
    _hole(lambda fd, offset, length: (offset, max(PAGE_SIZE, length - PAGE_SIZE)))


@fault("one-page-early", caught_by=("report-exact/split", "report-one-page/split"))
def _() -> None:
    """Each range is discarded one page too far down."""
    _hole(lambda fd, offset, length: (offset - PAGE_SIZE, length))


@fault("region-offset-twice", caught_by=("report-exact/split",))
def _() -> None:
    """Each range is discarded 64 KiB too far up, as with an offset that is added twice."""
    _hole(lambda fd, offset, length: (offset + 0x10000, length))


@fault(
    "discards-nothing",
    caught_by=("report-exact/split", "inflate-exact/split", "draft-report/split", "draft-inflate/split"),
)
def _() -> None:
    """Reports are acknowledged, and nothing is discarded."""
    replaced(ring_service, "punch_hole", lambda original: lambda fd, offset, length: 0)


@fault("first-range-only", caught_by=("report-exact/split", "report-exact/packed"))
def _() -> None:
    """Only the first range of a chain is discarded."""
    _planned(lambda discards: discards[:1])


@fault("last-range-lost", caught_by=("report-exact/split",))
def _() -> None:
    """The last range of a chain of several stays."""
    _planned(lambda discards: discards[:-1] if len(discards) > 1 else discards)


@fault("gaps-filled", caught_by=("report-exact/split", "range-neighbours-in-chain/split"))
def _() -> None:
    """Ranges of a chain are joined over the gaps between them."""

    def joined(places: Any) -> Any:
        found = sorted(places, key=lambda place: place.offset)
        if found:
            yield found[0].region, found[0].offset, found[-1].offset + found[-1].length - found[0].offset

    replaced(ring_service, "joined", lambda original: joined)


@fault("page-filled", caught_by=("report-exact/split", "report-content-after/split"))
def _() -> None:
    """A discarded page is filled with 0x55 afterwards."""

    def make(original: Any) -> Any:
        def punch(fd: int, offset: int, length: int) -> int:
            result: int = original(fd, offset, length)
            os.pwrite(fd, b"\x55" * PAGE_SIZE, offset)
            return result

        return punch

    replaced(ring_service, "punch_hole", make)


@fault("pages-touched", caught_by=("report-already-empty/split",))
def _() -> None:
    """A range is written with zeros instead of discarded, which brings its pages into being."""

    def punch(fd: int, offset: int, length: int) -> int:
        os.pwrite(fd, bytes(min(length, PAGE_SIZE)), offset)
        return 0

    replaced(ring_service, "punch_hole", lambda original: punch)


@fault("rounded-outward", caught_by=("range-unaligned/split", "range-unaligned/packed"))
def _() -> None:
    """A range that is no whole number of pages is rounded to the pages that it touches."""

    def make(original: Any) -> Any:
        def judge(self: Any, address: int, length: int, *rest: Any) -> Any:
            judged = original(self, address, length, *rest)
            if judged is not Refusal.UNALIGNED:
                return judged
            place = self.table.translate_guest(address, length)
            low = place.offset // PAGE_SIZE * PAGE_SIZE
            return FileRange(place.region, low, -(-(place.offset + length) // PAGE_SIZE) * PAGE_SIZE - low)

        return judge

    replaced(DeviceMemory, "_judge", make)


@fault("unaligned-passed-on", caught_by=("range-unaligned/split",))
def _() -> None:
    """A range that is no whole number of pages is passed to fallocate, which zeroes its edges."""

    def make(original: Any) -> Any:
        def judge(self: Any, address: int, length: int, *rest: Any) -> Any:
            judged = original(self, address, length, *rest)
            return self.table.translate_guest(address, length) if judged is Refusal.UNALIGNED else judged

        return judge

    replaced(DeviceMemory, "_judge", make)


@fault("outside-wraps", caught_by=("range-outside-memory/split",))
def _() -> None:
    """An address outside of the memory is taken modulo its size."""

    def make(original: Any) -> Any:
        def judge(self: Any, address: int, length: int, *rest: Any) -> Any:
            judged = original(self, address, length, *rest)
            if judged is not Refusal.OUT_OF_RANGE:
                return judged
            return FileRange(0, (16 << 20) + address % PAGE_SIZE, PAGE_SIZE)

        return judge

    replaced(DeviceMemory, "_judge", make)


@fault("bad-range-stops-report", caught_by=("range-good-beside-bad/split",))
def _() -> None:
    """One bad range has the good ones of its report stay."""

    def make(original: Any) -> Any:
        def plan(self: Any, *rest: Any) -> DiscardPlan:
            planned: DiscardPlan = original(self, *rest)
            if planned.refused:
                planned.discards = []
            return planned

        return plan

    replaced(DeviceMemory, "plan", make)


@fault("ring-not-protected", caught_by=("range-of-another-ring/split",))
def _() -> None:
    """A report of a ring's own pages discards them."""
    replaced(DeviceMemory, "is_protected", lambda original: lambda self, place: False)

    def make(original: Any) -> Any:
        def plan(self: Any, *rest: Any) -> DiscardPlan:
            self._protected = [[] for _ in self._protected]
            self._windows = [None] * len(self._windows)
            planned: DiscardPlan = original(self, *rest)
            return planned

        return plan

    replaced(DeviceMemory, "plan", make)


@fault("empty-range-breaks-chain", caught_by=("range-empty/split",))
def _() -> None:
    """A chain with a buffer of no bytes is never given back."""

    def make(original: Any) -> Any:
        def judge(self: Any, address: int, length: int, *rest: Any) -> Any:
            if length == 0:
                raise VirtqueueError("a buffer of no bytes")
            return original(self, address, length, *rest)

        return judge

    replaced(DeviceMemory, "_judge", make)


@fault("first-page-of-region-stays", caught_by=("range-first-and-last/split", "range-first-and-last/packed"))
def _() -> None:
    """The first page of a region is never discarded."""

    def later(discards: Any) -> Any:
        return [
            place if place.offset else FileRange(place.region, PAGE_SIZE, place.length - PAGE_SIZE)
            for place in discards
            if place.offset or place.length > PAGE_SIZE
        ]

    _planned(later)


@fault("inflate-wrong-shift", caught_by=("inflate-exact/split",))
def _() -> None:
    """Page frame numbers are taken for units of 8 KiB."""
    replaced(virtio_balloon, "_read_pfns", lambda original: lambda *rest: [2 * pfn for pfn in original(*rest)])


@fault("inflate-next-page", caught_by=("inflate-exact/split", "inflate-exact/packed"))
def _() -> None:
    """The page after each that is named goes."""
    replaced(virtio_balloon, "_read_pfns", lambda original: lambda *rest: [pfn + 1 for pfn in original(*rest)])


@fault("inflate-first-only", caught_by=("inflate-exact/split",))
def _() -> None:
    """Only the first number of a buffer counts."""
    replaced(virtio_balloon, "_read_pfns", lambda original: lambda *rest: original(*rest)[:1])


@fault("inflate-stops-at-bad", caught_by=("inflate-beyond-memory",))
def _() -> None:
    """The first number beyond the memory ends the buffer."""

    def make(original: Any) -> Any:
        def read(buffers: Any, plan: Any, read_guest: Any) -> list[int]:
            found: list[int] = []
            for pfn in original(buffers, plan, read_guest):
                try:
                    read_guest(pfn << 12, 1)
                except Exception:
                    break
                found.append(pfn)
            return found

        return read

    replaced(virtio_balloon, "_read_pfns", make)


@fault("inflate-by-buffer", caught_by=("inflate-over-two-buffers/split", "inflate-over-two-buffers/packed"))
def _() -> None:
    """Numbers are read from each buffer of a chain on its own."""

    def make(original: Any) -> Any:
        def read(buffers: Any, plan: Any, read_guest: Any) -> list[int]:
            return [pfn for one in buffers for pfn in original([one], plan, read_guest)]

        return read

    replaced(virtio_balloon, "_read_pfns", make)


@fault("deflate-discards", caught_by=("deflate-harmless/split", "deflate-harmless/packed"))
def _() -> None:
    """A deflate discards, as an inflate does."""

    def make(original: Any) -> Any:
        def serve(self: Any, queue: Any, *rest: Any) -> Any:
            return original(self, BalloonQueue.INFLATE if queue is BalloonQueue.DEFLATE else queue, *rest)

        return serve

    replaced(VirtioBalloon, "serve", make)


@fault("poison-ignored", caught_by=("poison-kept/split", "poison-kept/packed"))
def _() -> None:
    """Reported pages are discarded whatever the poison is."""
    VirtioBalloon.keeps_pages = property(lambda self: None)  # type: ignore[assignment,method-assign]


@fault("poison-kept-over-reset", caught_by=("poison-forgotten",))
def _() -> None:
    """A driver that begins after a reset has the poison of the last one."""

    def make(original: Any) -> Any:
        def forget(self: Any) -> None:
            poison, told = self.config.poison_val, self.poison_told
            original(self)
            self.config, self.poison_told = replace(self.config, poison_val=poison), told

        return forget

    for method in ("reset", "forget_driver"):
        replaced(VirtioBalloon, method, make)


@fault("hints-always", caught_by=("hint-without-round/split", "hint-without-id"))
def _() -> None:
    """Hinted pages are discarded under any command id."""
    replaced(FreePageHinting, "accepts", lambda original: lambda self: True)


@fault("hints-after-stop", caught_by=("hint-after-stop/split",))
def _() -> None:
    """Hinted pages are discarded after STOP."""
    replaced(FreePageHinting, "accepts", lambda original: lambda self: self.driver_id is None)


@fault("hints-of-another-round", caught_by=("hint-round/split", "hint-round/packed"))
def _() -> None:
    """In a round hinted pages are discarded under any command id."""
    replaced(FreePageHinting, "accepts", lambda original: lambda self: self.is_open and self.driver_id is not None)


@fault("hint-id-reused", caught_by=("hint-round-unanswered",))
def _() -> None:
    """Every round of hints has the command id 2."""

    def make(original: Any) -> Any:
        def start(self: Any) -> int:
            original(self)
            self.command_id = self.last_id = 2
            return 2

        return start

    replaced(FreePageHinting, "start", make)


@fault("hint-id-low-byte", caught_by=("hint-of-another-round",))
def _() -> None:
    """Of the command id of a hint only the low 8 bits are compared with the round's."""

    def accepts(self: Any) -> bool:
        current, given = self.command_id, self.driver_id
        return current > 1 and given is not None and given & 0xFF == current & 0xFF and self.ended_id != current

    replaced(FreePageHinting, "accepts", lambda original: accepts)


@fault("hint-id-low-byte-always", caught_by=("hint-without-round/split", "hint-without-round/packed"))
def _() -> None:
    """Of the command id of a hint only the low 8 bits are compared, with STOP and DONE too."""

    def accepts(self: Any) -> bool:
        return self.driver_id is not None and self.driver_id & 0xFF == self.command_id & 0xFF and self.driver_id > 1

    replaced(FreePageHinting, "accepts", lambda original: accepts)
