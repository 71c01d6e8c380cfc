"""The observations: each does one thing to a device and says in a few words what came of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.balloon_config import BalloonConfig
from protocol.memory import PAGE_SIZE
from protocol.virtio import feature_mask, has_feature
from protocol.virtio_balloon import (
    CONFIG_POISON_VAL,
    CONFIG_SIZE,
    BalloonFeature,
    BalloonQueue,
    QueueDialect,
    feature_bit_names,
)
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import WANTED, Device, Machine
from scripts.check.machine.memory_file import DATA_AT
from scripts.check.verdict import Failed
from scripts.check.words import counted

PATIENCE: Final = 1.0
"""Seconds in which a chain comes back, if it does: a device answers within milliseconds where a processor is free."""

_PAGES: Final = 8
"""Pages that are there before a report, from :data:`DATA_AT` on."""

_NOWHERE: Final = 1 << 30
"""Bytes after the end of memory where there is surely nothing."""

_PATTERN: Final = 0xAAAA_AAAA
_CONFIG_TRIED: Final = 24
"""Bytes of the configuration space that are tried: two words more than the balloon of virtio 1.2 has."""

_QUEUE_BITS: Final = feature_mask(BalloonFeature.STATS_VQ, BalloonFeature.FREE_PAGE_HINT)
_POISON: Final = feature_mask(BalloonFeature.PAGE_POISON)
_BALLOON_BITS: Final = feature_mask(*BalloonFeature)

NOT_OFFERED: Final = "not offered"
NO_ANSWER: Final = "not given back"


@dataclass(frozen=True, slots=True)
class Subject:
    """A device under observation, and how it numbers its queues."""

    device: Device
    dialect: QueueDialect = QueueDialect.NEGOTIATED

    def machine(self, *, wanted: int = WANTED | feature_mask(BalloonFeature.MUST_TELL_HOST)) -> Machine:
        """Bring it up as it expects to be numbered."""
        return self.device.machine(wanted=wanted, dialect=self.dialect)

    def offers(self, feature: BalloonFeature) -> bool:
        """Whether the feature is offered."""
        return has_feature(self.device.offered, feature)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """``seen`` returns what happens. With ``all_queues`` the device is to offer statistics,
    hinting and PAGE_POISON too."""

    name: str
    seen: Callable[[Subject], str]
    all_queues: bool = False


# -- queues -----------------------------------------------------------------------------------------------------------


def offered(subject: Subject) -> str:
    """Return the names of the balloon's own features that are offered."""
    return ", ".join(feature_bit_names(subject.device.offered & _BALLOON_BITS))


def reporting_queue(subject: Subject, refused: int = 0) -> str:
    """Return the number of the queue whose reports are carried out, for a driver that does not accept ``refused``."""
    numbers: list[str] = []
    tried: set[int] = set()
    for dialect in QueueDialect:
        with subject.device.machine(wanted=WANTED & ~refused, dialect=dialect) as machine:
            queue = machine.reporting
            if queue.index in tried:
                continue
            tried.add(queue.index)
            if _gone(machine, queue, writable=[_page(machine, 0)]) == {DATA_AT}:
                numbers.append(str(queue.index))
    return " or ".join(sorted(numbers)) or "none"


def without_both(subject: Subject) -> str:
    """As :func:`reporting_queue`, for a driver that declines statistics and hinting."""
    return reporting_queue(subject, _QUEUE_BITS)


def without_hinting(subject: Subject) -> str:
    """As :func:`reporting_queue`, for a driver that declines hinting."""
    return reporting_queue(subject, feature_mask(BalloonFeature.FREE_PAGE_HINT))


# -- reports ----------------------------------------------------------------------------------------------------------


def used_length(subject: Subject) -> str:
    """Return the used length of a report of one page, and of one of three."""
    lengths: list[str] = []
    for pages in (1, 3):
        with subject.machine() as machine:
            machine.memory.touch(DATA_AT, _PAGES * PAGE_SIZE)
            ranges = [(DATA_AT + 2 * page * PAGE_SIZE, PAGE_SIZE) for page in range(pages)]
            lengths.append(str(machine.report(*ranges).length))
    return ", ".join(lengths)


def report_of(*ranges: tuple[int, int], readable: bool = False) -> Callable[[Subject], str]:
    """Return an observation of a report of ``ranges``, pairs of offset from the first of eight pages and length."""

    def seen(subject: Subject) -> str:
        with subject.machine() as machine:
            buffers = [(machine.address(DATA_AT + offset), length) for offset, length in ranges]
            return _effect(machine, machine.reporting, buffers, readable=readable)

    return seen


def beyond_the_end(subject: Subject) -> str:
    """Report the last two pages of memory and one that is not there."""
    with subject.machine() as machine:
        last = machine.memory.size - 2 * PAGE_SIZE
        machine.memory.touch(last, 2 * PAGE_SIZE)
        return _effect(machine, machine.reporting, [(machine.address(last), 3 * PAGE_SIZE)])


def outside(pages: int) -> Callable[[Subject], str]:
    """Return an observation of a report of ``pages`` that are not there in one range, and of one that is."""

    def seen(subject: Subject) -> str:
        with subject.machine() as machine:
            nowhere = machine.address(machine.memory.size + _NOWHERE)
            return _effect(machine, machine.reporting, [(nowhere, pages * PAGE_SIZE), _page(machine, 0)])

    return seen


def the_ring(subject: Subject) -> str:
    """Report the page that holds the reporting queue itself."""
    with subject.machine() as machine:
        queue = machine.reporting
        effect = _effect(machine, queue, [(machine.address(queue.place), PAGE_SIZE)])
        # The device may have written its part of the page anew: the first descriptor is the driver's.
        return effect if any(machine.memory.read(queue.place, 16)) else "ring gone"


# -- configuration and poison -----------------------------------------------------------------------------------------


def written_target(subject: Subject) -> str:
    """Write num_pages, which is the device's, and read it back."""
    with subject.machine() as machine:
        machine.write_config(0, (7).to_bytes(4, "little"))
        return "taken" if _config(machine).num_pages == 7 else "ignored"


def written_pattern(subject: Subject) -> str:
    """Write poison_val before DRIVER_OK and read it back."""
    with subject.device.machine(wanted=WANTED | _POISON, dialect=subject.dialect, run=False) as machine:
        _write_pattern(machine)
        return "taken" if _config(machine).poison_val == _PATTERN else "ignored"


def config_size(subject: Subject) -> str:
    """Write every word of the configuration space; return how many bytes there are up to the last that took it.

    What lies beyond the end reads as zeros through vhost-user, and as ones in registers of QEMU.
    """
    with subject.device.machine(wanted=WANTED | _POISON, dialect=subject.dialect, run=False) as machine:
        pattern = _PATTERN.to_bytes(4, "little")
        for at in range(0, _CONFIG_TRIED, 4):
            machine.write_config(at, pattern)
        words = range(0, _CONFIG_TRIED, 4)
        return str(max((at + 4 for at in words if machine.read_config(at, 4) == pattern), default=0))


def report_with_pattern(subject: Subject) -> str:
    """Report a page of a guest that fills free pages with a pattern."""
    if not subject.offers(BalloonFeature.PAGE_POISON):
        return NOT_OFFERED
    with _poisoned(subject) as machine:
        return _effect(machine, machine.reporting, [_page(machine, 0)])


def inflate_with_pattern(subject: Subject) -> str:
    """Put a page of such a guest into the balloon."""
    if not subject.offers(BalloonFeature.PAGE_POISON):
        return NOT_OFFERED
    with _poisoned(subject) as machine:
        return _inflated(machine)


def inflate(subject: Subject) -> str:
    """Put a page into the balloon."""
    with subject.machine() as machine:
        return _inflated(machine)


OBSERVATIONS: Final[Sequence[Observation]] = (
    Observation(name="offers", seen=offered),
    Observation(name="reporting queue, all accepted", seen=reporting_queue),
    Observation(
        name="reporting queue, statistics and hinting declined",
        seen=without_both,
    ),
    Observation(name="both offered as well: all accepted", seen=reporting_queue, all_queues=True),
    Observation(
        name="both offered as well: both declined",
        seen=without_both,
        all_queues=True,
    ),
    Observation(
        name="both offered as well: hinting declined",
        seen=without_hinting,
        all_queues=True,
    ),
    Observation(name="used length of a report of 1, 3 pages", seen=used_length),
    Observation(name="report in a readable descriptor", seen=report_of((0, PAGE_SIZE), readable=True)),
    Observation(name="report from an address + 512", seen=report_of((512, 2 * PAGE_SIZE))),
    Observation(name="report of 4196 bytes", seen=report_of((0, PAGE_SIZE + 100))),
    Observation(name="report of no bytes, and of a page", seen=report_of((0, 0), (0, PAGE_SIZE))),
    Observation(name="report of a page twice", seen=report_of((0, PAGE_SIZE), (0, PAGE_SIZE))),
    Observation(name="report of the last 2 pages and 1 beyond the end", seen=beyond_the_end),
    Observation(name="report of 1 page outside of memory, and of a page", seen=outside(1)),
    Observation(name="report of 2 pages outside of memory, and of a page", seen=outside(2)),
    Observation(name="report of the queue's own ring", seen=the_ring),
    Observation(name="num_pages written by the driver", seen=written_target),
    Observation(name="poison_val written by the driver", seen=written_pattern),
    Observation(name="all offered: bytes of configuration that take a value", seen=config_size, all_queues=True),
    Observation(name="report with a pattern", seen=report_with_pattern),
    Observation(name="inflating with a pattern", seen=inflate_with_pattern),
    Observation(name="inflating", seen=inflate),
)
"""In the order of the table."""


# -- parts ------------------------------------------------------------------------------------------------------------


def _page(machine: Machine, number: int) -> tuple[int, int]:
    return machine.address(DATA_AT + number * PAGE_SIZE), PAGE_SIZE


def _config(machine: Machine) -> BalloonConfig:
    return BalloonConfig.parse(machine.read_config(0, CONFIG_SIZE))


def _write_pattern(machine: Machine) -> None:
    machine.write_config(CONFIG_POISON_VAL.start, _PATTERN.to_bytes(4, "little"))


def _poisoned(subject: Subject) -> Machine:
    machine = subject.device.machine(wanted=WANTED | _POISON, dialect=subject.dialect, run=False)
    _write_pattern(machine)
    machine.run()
    return machine


def _inflated(machine: Machine) -> str:
    queue = machine.queue(BalloonQueue.INFLATE)
    page = queue.buffers
    machine.memory.write(page, (machine.address(DATA_AT) >> 12).to_bytes(4, "little"))
    return _effect(machine, queue, [(machine.address(page), 4)], readable=True)


def _gone(machine: Machine, queue: DriverQueue, *, writable: Sequence[tuple[int, int]]) -> set[int]:
    machine.memory.touch(DATA_AT, _PAGES * PAGE_SIZE)
    before = machine.memory.present()
    queue.offer((), writable)
    try:
        queue.collect(seconds=PATIENCE)
    except Failed:  # another queue by this number, which keeps a buffer
        return set()
    return before - machine.memory.present()


def _effect(machine: Machine, queue: DriverQueue, buffers: Sequence[tuple[int, int]], *, readable: bool = False) -> str:
    """Offer ``buffers`` in one chain; return in words which pages went, what else changed, and whether it came back."""
    memory = machine.memory
    memory.touch(DATA_AT, _PAGES * PAGE_SIZE)
    before = memory.present()
    queue.offer(buffers if readable else (), () if readable else buffers)
    try:
        queue.collect(seconds=PATIENCE)
    except Failed:
        return NO_ANSWER
    after = memory.present()
    words = [_pages(len(before - after))] if before - after else []
    if changed := memory.spoilt(after):
        words.append(
            f"{len(changed)} partly zeroed" if before - after else f"{counted(len(changed), 'page')} partly zeroed"
        )
    return ", ".join(words) or "kept"


def _pages(count: int) -> str:
    return f"{counted(count, 'page')} gone"
