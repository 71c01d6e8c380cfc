"""The lines that the guest's process 1 writes on the control line while the guest boots, when it is asked, and when it
ends."""

import enum
from dataclasses import dataclass

PAGE_BYTES = 4096
KIB = 1024


class Stage(enum.Enum):
    """First word of each line that the guest writes on its control line."""

    BALLOON = "balloon"
    BOOTED = "booted"
    MEMORY = "memory"
    STATUS = "status"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """One line of the control line: the stage and its text, unparsed."""

    stage: Stage
    text: str


def parse_control_line(line: bytes) -> ControlMessage | None:
    """Parse a line of the guest; ``None`` for any other line (COMMAND is root in its guest and may write there)."""
    verb, _, text = line.decode("utf-8", "replace").strip().partition(" ")
    try:
        return ControlMessage(Stage(verb), text)
    except ValueError:
        return None


def parse_features(bits: str) -> int:
    """Return the number that sysfs writes as a row of binary digits with bit 0 first; 0 for anything else."""
    digits = bits.strip()
    return int(digits[::-1], 2) if digits and not digits.strip("01") else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneMemory:
    """What the kernel shows of one zone: pages, and ``nr_free``, the number of free blocks by order."""

    name: str
    free_pages: int
    low_watermark: int
    pcp_pages: int
    nr_free: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMemory:
    """What the kernel shows of its memory. ``total_bytes`` is MemTotal: without what a balloon holds.

    ``page_cache_bytes`` is file contents that the kernel can drop: the page cache without tmpfs.
    """

    total_bytes: int
    page_cache_bytes: int
    zones: tuple[ZoneMemory, ...]

    @property
    def free_bytes(self) -> int:
        """Bytes on free lists and per-CPU lists."""
        return sum(zone.free_pages + zone.pcp_pages for zone in self.zones) * PAGE_BYTES


def parse_memory_line(text: str) -> GuestMemory | None:
    """Return what :data:`guest.linux.init_script.TELL_MEMORY` has written, ``None`` for anything else.

    The line is ``TOTAL CACHE SHMEM BUFFERS`` in KiB, then for each zone with memory ``;NAME FREE LOW PCP N0 N1 ...``.
    """
    head, *zones = text.strip().split(";")
    try:
        total, cached, shmem, buffers = map(int, head.split())
        told = tuple(_zone(zone.split()) for zone in zones)
    except ValueError:
        return None
    if not told:
        return None
    return GuestMemory(total_bytes=total * KIB, page_cache_bytes=max(0, cached + buffers - shmem) * KIB, zones=told)


def _zone(words: list[str]) -> ZoneMemory:
    name, free, low, pcp, *blocks = words
    return ZoneMemory(
        name=name,
        free_pages=int(free),
        low_watermark=int(low),
        pcp_pages=int(pcp),
        nr_free=tuple(map(int, blocks)),
    )
