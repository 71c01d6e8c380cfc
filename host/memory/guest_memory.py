"""The files of a virtual machine's memory: checking them, reading them, mapping the pages that hold rings.

Only ring pages are mapped. Everything else is read with ``pread``, which does not allocate a page in a hole of the file
and returns short where the file was cut.
"""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from host.descriptors.received_file import check_regular, close_files, has_seals, is_hugetlb
from host.memory.discard_plan import DeviceMemory
from host.memory.sigbus import GuardedMapping
from host.virtqueue.ring_place import RingPlace
from protocol.errors import VhostUserError, VirtqueueError
from protocol.memory import PAGE_SIZE, FileRange, MemoryRegion, RegionTable
from protocol.ring_formats import RingLayout

_MAP_GRANULARITY: Final = mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True, slots=True)
class RegionFile:
    """One region's file. ``page_size`` is in bytes; ``sealed`` says that the file cannot be cut short. ``identity`` is
    the same for all descriptors of one file. ``answers_at_once`` says that ``fstat`` on it never waits: in tmpfs and
    hugetlbfs that takes no lock beyond a spin lock (Linux, mm/shmem.c, shmem_getattr)."""

    fd: int
    page_size: int
    sealed: bool
    identity: tuple[int, int]
    answers_at_once: bool = False


def open_region(region: MemoryRegion, fd: int) -> RegionFile:
    """Check that ``fd`` can be the memory of ``region``. Does not take ownership.

    Raises:
        VhostUserError: not a regular file, not open for reading and writing, or too short.
    """
    status = check_regular(fd, "the file of a memory region", writable=True)
    if region.mmap_offset + region.size > status.st_size:
        raise VhostUserError(
            f"a memory region of {region.size} bytes at {region.mmap_offset} exceeds its file of {status.st_size} bytes"
        )
    # A hugetlb file's preferred block is its huge page; any other file is discarded in pages of the system.
    page_size = status.st_blksize if status.st_blksize > PAGE_SIZE and is_hugetlb(fd) else mmap.PAGESIZE
    return RegionFile(fd, page_size, _is_sealed(fd), (status.st_dev, status.st_ino), has_seals(fd))


def _is_sealed(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False


class MappedRing:
    """A ring's views and the mappings below them. :meth:`close` gives both up."""

    def __init__(self, place: RingPlace, files: list[RegionFile]) -> None:
        self._mappings: list[GuardedMapping] = []
        self._views: list[memoryview] = []
        try:
            parts = [self._map_part(part, files[part.region]) for part in _shared_windows(place)]
        except (OSError, ValueError) as error:
            self.close()
            raise VhostUserError(f"a ring's memory cannot be mapped: {error}") from error
        desc, avail, used = self._cut(place, parts)
        self.ring = RingLayout(place.size, place.packed).open(desc, avail, used)

    def _map_part(self, window: FileRange, file: RegionFile) -> tuple[FileRange, memoryview]:
        granularity = max(_MAP_GRANULARITY, file.page_size)
        start = window.offset // granularity * granularity
        end = -(-(window.offset + window.length) // granularity) * granularity
        guarded = GuardedMapping(file.fd, end - start, start)
        self._mappings.append(guarded)
        view = memoryview(guarded.mapping)
        self._views.append(view)
        return FileRange(window.region, start, end - start), view

    def _cut(
        self, place: RingPlace, mapped: list[tuple[FileRange, memoryview]]
    ) -> tuple[memoryview, memoryview, memoryview]:
        cuts: list[memoryview] = []
        for part in place.parts:
            for window, view in mapped:
                at = part.offset - window.offset
                if window.region == part.region and at >= 0 and at + part.length <= window.length:
                    cuts.append(view[at : at + part.length])
                    break
        self._views.extend(cuts)
        return cuts[0], cuts[1], cuts[2]

    @property
    def lost(self) -> bool:
        """Whether memory below the ring is gone, so that what was read from the ring lately may mean nothing."""
        for mapping in self._mappings:  # noqa: SIM110  (a generator costs a call for each chain)
            if mapping.lost:
                return True
        return False

    def close(self) -> None:
        """Give up the views and unmap. The ring must be out of use."""
        if hasattr(self, "ring"):
            self.ring.release()
        for view in reversed(self._views):
            view.release()
        for mapping in self._mappings:
            mapping.close()
        self._views.clear()
        self._mappings.clear()


_WINDOW_GAP: Final = 64 << 10


def _shared_windows(place: RingPlace) -> list[FileRange]:
    # Drivers allocate the three parts together as a rule. One mapping then does, and each costs a file descriptor.
    first = min(part.offset for part in place.parts)
    end = max(part.offset + part.length for part in place.parts)
    together = end - first <= sum(part.length for part in place.parts) + _WINDOW_GAP
    if together and len({part.region for part in place.parts}) == 1:
        return [FileRange(place.descriptor.region, first, end - first)]
    return list(place.parts)


class GuestMemory:
    """A virtual machine's memory: its table, its files, which it owns, and the places of the rings that run.

    ``close`` closes files that are no longer needed. The last one to close a file frees its pages, which takes time.
    """

    def __init__(self, close: Callable[[Iterable[int]], None] = close_files) -> None:
        self._close = close
        self.table = RegionTable()
        self.files: list[RegionFile] = []
        self.device = DeviceMemory(self.table)
        self._ring_places: dict[int, RingPlace] = {}

    @property
    def sealed(self) -> bool:
        """Whether every region's file is sealed against being cut short."""
        return all(file.sealed for file in self.files)

    def replace(self, table: RegionTable, fds: Iterable[int]) -> None:
        """Take ``fds`` as the files of ``table``'s regions in place of all earlier ones.

        Raises:
            VhostUserError: a file is not fit; nothing has changed then, and the caller still owns ``fds``.
        """
        files = [open_region(region, fd) for region, fd in zip(table.regions, fds, strict=True)]
        old = self.files
        self.table, self.files = table, files
        self._refresh()
        self._close(file.fd for file in old)

    def add(self, table: RegionTable, fd: int) -> None:
        """Take ``fd`` as the file of the last region of ``table``. Raises like :meth:`replace`."""
        self.files = [*self.files, open_region(table.regions[-1], fd)]
        self.table = table
        self._refresh()

    def drop(self, table: RegionTable, number: int) -> None:
        """Close the file of region ``number``; ``table`` is what is left."""
        gone = self.files[number]
        self.files = [*self.files[:number], *self.files[number + 1 :]]
        self.table = table
        self._refresh()
        self._close((gone.fd,))

    def close(self) -> None:
        """Close every file. No ring may be mapped any more."""
        self.replace(RegionTable(), ())

    def map_ring(self, index: int, place: RingPlace) -> MappedRing:
        """Map a ring that begins to run, and put its pages off limits for discards.

        Raises:
            VhostUserError: the kernel refuses to map it.
        """
        mapped = MappedRing(place, self.files)
        self._ring_places[index] = place
        self._refresh()
        return mapped

    def unmap_ring(self, index: int, mapped: MappedRing) -> None:
        """Unmap a ring that has stopped. Its pages are ordinary memory of the guest again."""
        mapped.close()
        del self._ring_places[index]
        self._refresh()

    def _refresh(self) -> None:
        protected = [part for place in self._ring_places.values() for part in place.parts]
        page_sizes = tuple(file.page_size for file in self.files)
        self.device = DeviceMemory(self.table, page_sizes, protected, tuple(file.identity for file in self.files))

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at guest ``address``.

        Raises:
            VirtqueueError: they do not lie in one region, or the file ends before them.
        """
        place = self.table.translate_guest(address, length)
        if place is None:
            raise VirtqueueError(f"{length} bytes at guest address {address:#x} are outside the guest's memory")
        data = os.pread(self.files[place.region].fd, length, place.offset)
        if len(data) != length:
            raise VirtqueueError(f"the guest's memory ends before {length} bytes at guest address {address:#x}")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at guest ``address``. It is mapped for that: a file of huge pages takes no other writes, and
        write(2) would lengthen a file that was cut short.

        Raises:
            VirtqueueError: the place does not lie in one region, or the file ends before its end.
        """
        place = self.table.translate_guest(address, len(data))
        if place is None:
            raise VirtqueueError(f"{len(data)} bytes at guest address {address:#x} are outside the guest's memory")
        file = self.files[place.region]
        granularity = max(_MAP_GRANULARITY, file.page_size)
        start = place.offset // granularity * granularity
        end = -(-(place.offset + place.length) // granularity) * granularity
        try:
            guarded = GuardedMapping(file.fd, end - start, start)
        except (OSError, ValueError) as error:
            raise VirtqueueError(f"guest address {address:#x} cannot be mapped for writing: {error}") from error
        try:
            guarded.mapping[place.offset - start : place.offset - start + len(data)] = data
            if guarded.lost:
                raise VirtqueueError(f"the guest's memory ends before {len(data)} bytes at guest address {address:#x}")
        finally:
            guarded.close()
