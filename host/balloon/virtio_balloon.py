"""The balloon device: what a chain on each of its queues asks for, and what its configuration space holds.

Source: virtio 1.2, 5.5.6. Free page reporting is 5.5.6.7: the device-writable buffers of a chain *are* the free pages.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from host.balloon.balloon_statistics import STATISTICS_BYTES_MAX, BalloonStatistics, parse_statistics
from host.balloon.ballooned_pages import BalloonedPages
from host.balloon.device_init import initialised_bitmap, initialised_bytes
from host.balloon.free_page_hinting import COMMAND_ID_SIZE, FreePageHinting
from host.balloon.personality import OURS, Personality, ReportLength
from host.memory.discard_plan import STRICT, DeviceMemory, DiscardPlan, RangeRules, Refusal
from host.virtqueue.virtqueue import Buffer, Chain, ReadGuest, WriteGuest
from protocol.balloon_config import BalloonConfig
from protocol.balloon_statistics import STATISTIC_SIZE
from protocol.errors import VirtqueueError
from protocol.memory import PAGE_SIZE, FileRange
from protocol.virtio import LOG_ALL, has_feature
from protocol.virtio_balloon import CONFIG_POISON_VAL, PFN_SHIFT, PFN_SIZE, BalloonFeature, BalloonQueue

PFN_BYTES_MAX: Final = 64 << 10
"""Most bytes of page frame numbers that one chain may carry. Linux sends 1 KiB."""

_PFN: Final = struct.Struct("<I")
_LENGTH_MASK: Final = (1 << 32) - 1


@dataclass(slots=True)
class Outcome:
    """What one chain asks for and says.

    ``plan`` is to be carried out before the chain is given back. ``hold`` says that the chain is to be kept until the
    device wants new statistics (virtio 1.2, 5.5.6.3: "the device uses the buffer" to request them). ``pages`` is the
    number of page frame numbers of an inflate or deflate chain, duplicates included; ``pfns`` are those of an inflate
    chain that has a bitmap for them (see :mod:`host.balloon.device_init`). On the free page queue ``command_id`` is the
    command in this chain, if there is one, and ``hint_id`` the round that its blocks are for.
    """

    plan: DiscardPlan = field(default_factory=DiscardPlan)
    hold: bool = False
    pages: int = 0
    statistics: BalloonStatistics | None = None
    command_id: int | None = None
    hint_id: int | None = None
    pfns: list[int] = field(default_factory=list)


@dataclass(slots=True)
class VirtioBalloon:
    """The device's state: configuration space, what was negotiated, and the round of free page hinting.

    ``config.actual`` is a claim of the guest: no decision about memory depends on it.

    Every field has one writer. The workers that serve rings write ``settled_for`` and, on the free page queue, the
    driver's half of ``hinting``; ``parts`` has a lock of its own. All other fields are the event loop's: ``config``,
    ``features``, ``discard``, ``inhibited``, ``drivers``, ``poison_told``, ``poison_is_old``.

    ``discard`` False is the operator's word that nothing may be discarded (for example because a device of the guest
    has its memory pinned), and so does ``inhibited`` for the time being. ``drivers`` counts the drivers that have left.
    ``settled_for`` is its value at the last chain that was not statistics; while they are equal ``poison_val`` is
    settled: a driver must not change it after
    DRIVER_OK (virtio 1.2, 5.5.6.6.1), and no chain comes before that. ``poison_told`` says that this device has
    received a ``poison_val``, ``poison_is_old`` that a ring has run since. A driver writes the value before DRIVER_OK,
    but a device that took over from a killed one does not receive it.

    ``personality`` has the habits of the device that this one behaves like.
    """

    config: BalloonConfig = field(default_factory=BalloonConfig)
    features: int = 0
    discard: bool = True
    inhibited: bool = field(default=False, compare=False)
    poison_told: bool = False
    drivers: int = field(default=0, compare=False)
    settled_for: int = field(default=-1, compare=False)
    poison_is_old: bool = field(default=False, compare=False)
    hinting: FreePageHinting = field(default_factory=FreePageHinting)
    parts: BalloonedPages = field(default_factory=BalloonedPages)
    personality: Personality = OURS

    def write_config(self, offset: int, data: bytes, *, poison_offered: bool, driver_runs: bool = False) -> None:
        """Let the driver write ``data`` at byte ``offset``; only the fields that a driver may write change.

        PAGE_POISON has to be offered for ``poison_val`` to be writable, not yet negotiated: QEMU passes on what the
        driver writes at once, but the features only when the driver is ready.

        With ``driver_runs`` a driver is at work. A write of the whole window then tells no poison value: QEMU sends it
        for a new ``actual`` and repeats what it has read from this device, which may never have known the value.
        """
        fields = self.personality.writable_config
        poison = poison_offered and self.settled_for != self.drivers and CONFIG_POISON_VAL.start in fields
        covers = offset <= CONFIG_POISON_VAL.start and CONFIG_POISON_VAL.stop <= offset + len(data)
        if poison and covers and (offset == CONFIG_POISON_VAL.start or not driver_runs):
            self.poison_told, self.poison_is_old = True, False
        writable = fields if poison else fields - {*CONFIG_POISON_VAL}
        self.config = self.config.written_by_driver(offset, data, writable=writable)

    def read_config(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes of the configuration space from ``offset``; zeros beyond its end."""
        config = self.config.build()[: self.personality.config_size]
        return config[offset : offset + length].ljust(length, b"\0")

    def driver_left(self) -> None:
        """Every ring has stopped: the next driver sets a poison value of its own before its first chain."""
        self.drivers += 1

    def forget_driver(self) -> None:
        """Another driver begins: forget what the last one wrote, but not what the new one has written by now.

        Its poison value may have come, which QEMU passes on before the rings start. An ``actual`` that came by now
        only repeats the old one.
        """
        self.parts.forget()
        if self.poison_is_old:
            self.poison_told = False
            self.config = replace(self.config, poison_val=0)
        if not self.hinting.is_open:
            self.hinting.reset()
        self.config = replace(self.config, actual=self._actual_left, free_page_hint_cmd_id=self.hinting.command_id)

    def reset(self) -> None:
        """Forget what a driver negotiated and wrote; the target (``num_pages``) is the host's and stays."""
        self.features = 0
        self.parts.forget()
        self.driver_left()
        self.poison_told = False
        self.hinting.reset()
        command_id = self.hinting.command_id
        self.config = replace(self.config, actual=self._actual_left, free_page_hint_cmd_id=command_id, poison_val=0)

    @property
    def _actual_left(self) -> int:
        # What the next driver finds in ``actual``.
        return self.config.actual if self.personality.keeps_actual else 0

    @property
    def keeps_pages(self) -> Refusal | None:
        """Why no page of this guest may be discarded at present, or None if pages may be.

        virtio 1.2, 5.5.6.7.2: with PAGE_POISON "the device MUST NOT modify the content of a reported page to a value
        other than poison_val". A discard leaves zeros, so it is right for a poison value of zero only, and not for one
        that is not known.
        """
        if not self.discard:
            return Refusal.DISCARD_OFF
        if self.inhibited:
            return Refusal.INHIBITED
        poisoned = self.config.poison_val != 0 or not self.poison_told
        if poisoned and has_feature(self.features, BalloonFeature.PAGE_POISON):
            return Refusal.POISON
        return None

    def serves(self, queue: BalloonQueue | None) -> bool:
        """Return whether chains of ``queue`` are taken at all."""
        return queue is None or queue in self.personality.serves

    def serve(self, queue: BalloonQueue | None, chain: Chain, memory: DeviceMemory, read_guest: ReadGuest) -> Outcome:
        """Return what ``chain`` asks for and says. A hinting command takes effect here; all else is left to the caller.

        Every buffer of a ``queue`` that no numbering knows (None) is refused.

        Raises:
            VirtqueueError: what a device-readable buffer names lies outside the guest's memory.
        """
        if self.personality.breaks_empty and any(not length for _, length in chain.readable + chain.writable):
            raise VirtqueueError(f"{self.personality.name} ends at a descriptor of no bytes")
        if queue is not BalloonQueue.STATS:  # Linux offers its first statistics buffer before it writes poison_val
            self.settled_for = self.drivers
        if queue is BalloonQueue.REPORTING:
            return Outcome(self._plan_report(chain, memory))
        outcome = Outcome()
        plan = outcome.plan
        match queue:
            case BalloonQueue.INFLATE:
                self._serve_inflate(chain, memory, outcome, read_guest)
            case BalloonQueue.DEFLATE:
                # With MUST_TELL_HOST a driver waits until this is acknowledged. There is nothing to prepare: inflated
                # pages were discarded before their inflate chain was acknowledged, and none is looked at afterwards.
                outcome.pages = min(sum(length for _, length in chain.readable), PFN_BYTES_MAX) // PFN_SIZE
                plan.ranges, plan.bytes = len(chain.readable), outcome.pages << PFN_SHIFT
                if self._collects(memory):
                    self.parts.deflate(_read_pfns(chain.readable, DiscardPlan(), read_guest), memory)
            case BalloonQueue.STATS:
                data = _read_array(chain.readable, STATISTICS_BYTES_MAX, plan, read_guest)
                outcome.statistics, outcome.hold = parse_statistics(data), True
            case BalloonQueue.FREE_PAGE:
                self._serve_hint(chain, memory, outcome, read_guest)
            case None:
                plan.refuse_all(Refusal.UNKNOWN_QUEUE, chain.writable)
                plan.refuse_all(Refusal.UNKNOWN_QUEUE, chain.readable)
                outcome.hold = not chain.writable and _looks_like_statistics(chain.readable, read_guest)
        return outcome

    def used_length(self, queue: BalloonQueue | None, chain: Chain, outcome: Outcome, write_guest: WriteGuest) -> int:
        """Return the used length of ``chain``, whose ``outcome.plan`` was carried out; a bitmap in it is written here.

        Raises:
            VirtqueueError: the bitmap lies outside the guest's memory.
        """
        if queue is BalloonQueue.REPORTING:
            if self._tells_initialised(BalloonFeature.DEVICE_INIT_REPORTED):
                return initialised_bytes(chain.writable, outcome.plan)
            if self.personality.report_length is ReportLength.SUM:
                return outcome.plan.bytes & _LENGTH_MASK
        elif outcome.pfns:
            bitmap = initialised_bitmap(outcome.pfns, outcome.plan)
            return _write_array(chain.writable, bitmap, write_guest)
        return 0

    def _tells_initialised(self, feature: BalloonFeature) -> bool:
        return has_feature(self.features, feature) and not self.features & LOG_ALL

    def _plan_report(self, chain: Chain, memory: DeviceMemory) -> DiscardPlan:
        habits = self.personality
        pages = chain.readable + chain.writable if habits.takes_readable else chain.writable
        plan = self._plan_ranges(BalloonQueue.REPORTING, pages, chain, memory, habits.ranges)
        if habits.outside_max is not None:
            outside = sum(each.length for each in plan.refused if each.reason is Refusal.OUT_OF_RANGE)
            if habits.ranges.clamps:
                outside += sum(_beyond_the_region(buffer, memory) for buffer in pages)
            if outside > habits.outside_max:
                raise VirtqueueError(f"{habits.name} ends at a report of {outside} bytes outside of memory")
        if not habits.takes_readable:
            # The text does not say which direction; a device must not change, so not discard, a read-only buffer.
            plan.refuse_all(Refusal.READABLE, chain.readable)
        return plan

    def _serve_inflate(self, chain: Chain, memory: DeviceMemory, outcome: Outcome, read_guest: ReadGuest) -> None:
        plan = outcome.plan
        pages = _read_pfns(chain.readable, plan, read_guest)
        plan.add(self._plan_ranges(BalloonQueue.INFLATE, _runs_of_pages(pages, memory), chain, memory))
        outcome.pages = len(pages)
        if self._keeps_pages_of(BalloonQueue.INFLATE) is None and self._collects(memory):
            # The chain names less than what is given back with it.
            whole = memory.plan(self.parts.inflate(pages, memory), chain.indirect_table)
            plan.discards += [place for place in whole.discards if not _is_covered(place, plan.discards)]
        if chain.writable and self._tells_initialised(BalloonFeature.DEVICE_INIT_ON_INFLATE):
            outcome.pfns = pages

    def _keeps_pages_of(self, queue: BalloonQueue) -> Refusal | None:
        reason = self.keeps_pages
        return None if reason is Refusal.POISON and queue not in self.personality.poison_keeps else reason

    def _collects(self, memory: DeviceMemory) -> bool:
        return max(memory.page_sizes, default=0) > PAGE_SIZE and has_feature(
            self.features, BalloonFeature.MUST_TELL_HOST
        )

    def _serve_hint(self, chain: Chain, memory: DeviceMemory, outcome: Outcome, read_guest: ReadGuest) -> None:
        plan = outcome.plan
        if chain.readable:
            if sum(length for _, length in chain.readable) == COMMAND_ID_SIZE:
                data = _read_array(chain.readable, COMMAND_ID_SIZE, plan, read_guest)
                outcome.command_id = int.from_bytes(data, "little")
                self.hinting.take_command(outcome.command_id)
            else:
                self.hinting.misunderstood()
                plan.refuse_all(Refusal.BAD_COMMAND, chain.readable)
        outcome.hint_id = self.hinting.driver_id
        if self.hinting.accepts():
            plan.add(self._plan_ranges(BalloonQueue.FREE_PAGE, chain.writable, chain, memory))
        else:
            plan.refuse_all(Refusal.STALE_HINT, chain.writable)

    def _plan_ranges(
        self,
        queue: BalloonQueue,
        buffers: Iterable[Buffer],
        chain: Chain,
        memory: DeviceMemory,
        rules: RangeRules = STRICT,
    ) -> DiscardPlan:
        reason = self._keeps_pages_of(queue)
        if reason is None:
            return memory.plan(buffers, chain.indirect_table, rules)
        plan = DiscardPlan()
        plan.refuse_all(reason, buffers)
        return plan


def _read_array(buffers: list[Buffer], limit: int, plan: DiscardPlan, read_guest: ReadGuest) -> bytes:
    # An array may lie in any number of descriptors, and be cut anywhere. The part beyond the limit is not read.
    data = bytearray()
    for address, length in buffers:
        room = limit - len(data)
        if length > room:
            plan.refuse(Refusal.TOO_LONG, address + room, length - room)
        if room > 0 and length > 0:
            data += read_guest(address, min(length, room))
    return bytes(data)


def _write_array(buffers: list[Buffer], data: bytes, write_guest: WriteGuest) -> int:
    # As much of it as there is room for; returns the bytes that were written.
    written = 0
    for address, length in buffers:
        part = data[written : written + length]
        if part:
            write_guest(address, part)
            written += len(part)
    return written


def _beyond_the_region(buffer: Buffer, memory: DeviceMemory) -> int:
    # Bytes of a buffer after the end of the region that it begins in.
    address, length = buffer
    number = memory.table.find_guest(address)
    return 0 if number is None else max(0, address + length - memory.table.regions[number].guest_end)


def _is_covered(place: FileRange, ranges: list[FileRange]) -> bool:
    return any(
        each.region == place.region
        and each.offset <= place.offset
        and place.offset + place.length <= each.offset + each.length
        for each in ranges
    )


def _looks_like_statistics(buffers: list[Buffer], read_guest: ReadGuest) -> bool:
    # A driver answers a statistics buffer that it has back with the next one at once, without end.
    data = _read_array(buffers, STATISTICS_BYTES_MAX, DiscardPlan(), read_guest)
    statistics = parse_statistics(data)
    return len(data) % STATISTIC_SIZE == 0 and bool(statistics.values) and statistics.unknown == 0


def _read_pfns(buffers: list[Buffer], plan: DiscardPlan, read_guest: ReadGuest) -> list[int]:
    # virtio 1.2, 5.5.6: 32-bit little-endian page frame numbers.
    data = _read_array(buffers, PFN_BYTES_MAX, plan, read_guest)
    return [pfn for (pfn,) in _PFN.iter_unpack(data[: len(data) // PFN_SIZE * PFN_SIZE])]


def _runs_of_pages(pfns: list[int], memory: DeviceMemory) -> Iterator[Buffer]:
    # Neighbouring pages become one range: 256 single pages of a contiguous balloon are then one system call.
    ordered = sorted(set(pfns))
    start = 0
    while start < len(ordered):
        end = start + 1
        while end < len(ordered) and ordered[end] == ordered[end - 1] + 1:
            end += 1
        yield from memory.split_pages(ordered[start] << PFN_SHIFT, (end - start) * PAGE_SIZE)
        start = end
