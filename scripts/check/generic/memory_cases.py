"""The memory table as a whole (vhost-user, "Memory regions description", SET_MEM_TABLE)."""

import os
import socket
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import REGIONS_PER_TABLE, FrontendRequest
from protocol.vhost_user_codec import build_payload
from protocol.vhost_user_payloads import MEMORY_TABLE, MemoryTable
from scripts.check.generic.judging import KEPT, Bad, judged, raise_worst, refuses, survives
from scripts.check.generic.ring import GUEST_BASE, USER_BASE, whole
from scripts.check.generic.suite import SUITE
from scripts.check.generic.target import MEMORY_BYTES, Kind, Target
from scripts.check.generic.watched_file import WatchedMemory, still_held
from scripts.check.machine.memory_file import MIB, MemoryFile
from scripts.check.verdict import Failed, Found, NotExercised, require, skip

_REGION: Final = 2 * MIB
_TOP: Final = 1 << 64


def region(
    number: int = 0, *, size: int = _REGION, guest: int | None = None, offset: int | None = None
) -> MemoryRegion:
    """Return a region of the memory: the part with this number, unless told otherwise."""
    return MemoryRegion(
        guest_address=GuestAddress(GUEST_BASE + number * _REGION if guest is None else guest),
        size=size,
        user_address=UserAddress(USER_BASE + number * _REGION),
        mmap_offset=number * _REGION if offset is None else offset,
    )


def _table(what: str, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> Bad:
    return Bad(f"a memory table {what}", FrontendRequest.SET_MEM_TABLE, MemoryTable(tuple(regions)), fds)


def _not_mapped(reason: str) -> Failed:
    # mmap() fails, so that a 0 cannot be true.
    return Failed(reason, "V-22")


def _useless(reason: str) -> Found:
    return Found(reason, "F-regions")


@SUITE.case("table-and-descriptors-differ", clauses=("V-21",), edges=(37,), peers=("rust-vmm", "libvhost-user"))
def table_and_descriptors_differ(target: Target) -> None:
    """A memory table with fewer or more descriptors than regions is refused."""
    fd = target.memory.fd
    bad = [
        _table("of 1 region without a descriptor", [region()], ()),
        _table("of 2 regions with 1 descriptor", [region(0), region(1)], (fd,)),
    ]
    refuses(target, bad, target.negotiate)
    more = [_table("of 1 region with 2 descriptors", [region()], (fd, fd))]
    refuses(target, more, target.begin_again, done=Found)


@SUITE.case("table-without-regions", clauses=("V-21",), edges=(38,), peers=("rust-vmm",))
def table_without_regions(target: Target) -> None:
    """A memory table without regions is taken as no memory, or refused."""
    refuses(target, [_table("without regions", [], ())], target.negotiate, done=None)


@SUITE.case("table-too-large", clauses=("V-21",), edges=(39,))
def table_too_large(target: Target) -> None:
    """A memory table of more than 8 regions is refused, however many it announces."""
    regions = [region(number) for number in range(REGIONS_PER_TABLE + 1)]
    count = 0xFFFF_FFFF
    huge = struct.pack("<II", count, 0) + build_payload(MEMORY_TABLE, MemoryTable((region(),)))[8:]
    bad = [
        _table("of 9 regions", regions, (target.memory.fd,) * len(regions)),
        Bad(f"a memory table of {count} regions", FrontendRequest.SET_MEM_TABLE, huge, (target.memory.fd,)),
    ]
    refuses(target, bad, target.negotiate)


@SUITE.case("regions-that-wrap", clauses=("V-22", "F-regions"), edges=(40,), peers=("rust-vmm", "DPDK"))
def regions_that_wrap(target: Target) -> None:
    """A region whose end lies beyond 2^64, in guest or user addresses or in its file, is refused."""
    fd = (target.memory.fd,)
    far = MemoryRegion(
        guest_address=GuestAddress(GUEST_BASE), size=_REGION, user_address=UserAddress(_TOP - PAGE_SIZE), mmap_offset=0
    )
    bad = [
        _table("whose file offset wraps", [region(offset=_TOP - PAGE_SIZE)], fd),
        _table("with a region of 2^64 - 4096 bytes", [region(size=_TOP - PAGE_SIZE)], fd),
    ]
    refuses(target, bad, target.negotiate, done=_not_mapped)
    useless = [
        _table("whose guest addresses wrap", [region(guest=_TOP - PAGE_SIZE)], fd),
        _table("whose user addresses wrap", [far], fd),
    ]
    refuses(target, useless, target.begin_again, done=_useless)


@SUITE.case("regions-that-cannot-be", clauses=("F-regions",), edges=(41, 42, 43), peers=("rust-vmm", "libvhost-user"))
def regions_that_cannot_be(target: Target) -> None:
    """Regions that are empty, overlap, or lie beyond their file are refused."""
    fd = target.memory.fd
    bad = [
        _table("with an empty region", [region(size=0)], (fd,)),
        _table("whose guest addresses overlap", [region(0), region(1, guest=GUEST_BASE + PAGE_SIZE)], (fd, fd)),
        _table("with a region that begins beyond its file", [region(offset=MEMORY_BYTES)], (fd,)),
        _table("with a region that ends beyond its file", [region(offset=MEMORY_BYTES - PAGE_SIZE)], (fd,)),
    ]
    refuses(target, bad, target.negotiate, done=Found)  # all of them can be mapped


@SUITE.case("descriptor-is-no-memory", clauses=("V-22",), edges=(44,))
def descriptor_is_no_memory(target: Target) -> None:
    """A region whose descriptor is a socket, a directory or an event counter is refused: it cannot be mapped."""
    ours, other = socket.socketpair()
    target.keep(ours), target.keep(other)
    fds = {
        "a socket": ours.fileno(),
        "an eventfd": target.keep_fd(os.eventfd(0, os.EFD_CLOEXEC)),
        "a directory": target.keep_fd(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)),
        "a pipe": target.keep_pipe().fd,
    }
    refuses(target, [_table(f"in {what}", [region()], (fd,)) for what, fd in fds.items()], target.negotiate)


@SUITE.case("refused-table-leaves-the-old", clauses=("V-23",), edges=(37,))
def refused_table_leaves_the_old(target: Target) -> None:
    """After a refused memory table the one before is still in force."""
    target.negotiated()
    bad = _table("of 2 regions with 1 descriptor", [region(0), region(1)], (target.memory.fd,))
    answer = target.attempt(bad.request, bad.payload, bad.fds)
    if answer.kind is not Kind.REFUSED:
        skip(f"the back-end did not refuse a bad memory table: {answer.kind.value}")
    ring = target.ring()
    target.start(ring)
    target.stop(ring)


@SUITE.case("unaligned-file-offset", clauses=("V-22",), edges=(45,), peers=("libvhost-user",))
def unaligned_file_offset(target: Target) -> None:
    """A region whose file offset is no multiple of a page is rounded for the mapping, or refused."""
    bad = [_table("with file offset 0x1800", [region(offset=0x1800)], (target.memory.fd,))]
    refuses(target, bad, target.negotiate, done=None)


@SUITE.case("longer-table", clauses=("V-4",), edges=(50,), peers=("User Mode Linux",))
def longer_table(target: Target) -> None:
    """A memory table of 1 region in 72 bytes, as User Mode Linux before 6.13 sends it, is accepted."""
    target.negotiate()
    data = build_payload(MEMORY_TABLE, MemoryTable((whole(target.memory),))) + bytes(32)
    answer = target.attempt(FrontendRequest.SET_MEM_TABLE, data, (target.memory.fd,))
    if answer.kind not in (Kind.ACCEPTED, Kind.UNHEARD):
        raise Found(f"a memory table of 72 bytes was {answer.kind.value}: User Mode Linux before 6.13 cannot attach")


@SUITE.case("table-on-disk", clauses=("V-22",), peers=("public/kata-runtime-1657",))
def table_on_disk(target: Target) -> None:
    """Memory in an ordinary file is served, or that message is refused; the session lives."""
    target.negotiate()
    with tempfile.TemporaryDirectory() as directory:
        memory = target.keep(MemoryFile(MEMORY_BYTES, Path(directory, "memory")))
        answer = target.attempt(FrontendRequest.SET_MEM_TABLE, MemoryTable((whole(memory),)), (memory.fd,))
        outcome = judged("memory in an ordinary file", answer, None)
        if outcome is not None and not isinstance(outcome, NotExercised):
            raise outcome
        target.check_alive()


@SUITE.case("new-table-on-a-running-ring", clauses=("V-24",), edges=(47,), peers=("QEMU", "tp-qemu/balloon_memhp"))
def new_table_on_a_running_ring(target: Target) -> None:
    """A new memory table with the same memory, as for a plugged DIMM, leaves a running ring where it is."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(9)
    target.start(ring, 9)
    more = MemoryRegion(
        guest_address=GuestAddress(GUEST_BASE + MEMORY_BYTES),
        size=_REGION,
        user_address=UserAddress(USER_BASE + MEMORY_BYTES),
        mmap_offset=0,
    )
    table = MemoryTable((whole(target.memory), more))
    target.do(FrontendRequest.SET_MEM_TABLE, table, (target.memory.fd, target.memory.fd))
    ring.kick_it()
    target.set_memory()
    base = target.stop(ring)
    require(base == 9, f"after new memory tables a ring at index 9 is at {base}")


@SUITE.case("table-without-the-rings", clauses=("V-27", "V-24"), edges=(48,), peers=("libvhost-user",))
def table_without_the_rings(target: Target) -> None:
    """A memory table without the memory of a running ring is survived, and the ring can be started again."""
    target.negotiated()
    ring = target.ring()
    target.start(ring)
    elsewhere = region(guest=GUEST_BASE + 64 * MIB)
    moved = MemoryRegion(
        guest_address=elsewhere.guest_address,
        size=_REGION,
        user_address=UserAddress(USER_BASE + 64 * MIB),
        mmap_offset=0,
    )
    answer = target.attempt(FrontendRequest.SET_MEM_TABLE, MemoryTable((moved,)), (target.memory.fd,))
    if answer.kind is Kind.HUNG_UP:
        raise Found("a memory table without the ring's memory ended the connection; QEMU then loses the device")
    ring.kick_it()
    survives(target)
    target.set_memory()
    target.stop(ring)
    target.start(ring)
    target.stop(ring)


@SUITE.case("replaced-memory-is-given-up", clauses=("V-27", "V-6"), peers=("DPDK",))
def replaced_memory_is_given_up(target: Target) -> None:
    """Memory that a new table no longer has is unmapped, and its descriptor closed."""
    target.negotiate()
    old = target.keep(WatchedMemory(_REGION))
    target.do(FrontendRequest.SET_MEM_TABLE, MemoryTable((region(),)), (old.fd,))
    target.set_memory()
    if not old.is_released(1.0):
        raise Found("memory that a new table replaced is still mapped, or its descriptor open, after 1 s")


@SUITE.case("many-tables", clauses=("V-6",), peers=("DPDK", "public/spdk-2852"), quick=False)
def many_tables(target: Target) -> None:
    """A hundred memory tables, good ones and refused ones, leave no descriptor of theirs behind."""
    target.negotiate()
    old = target.keep(WatchedMemory(REGIONS_PER_TABLE * _REGION))
    for number in range(1, 101):
        regions = tuple(region(part) for part in range(1 + number % REGIONS_PER_TABLE))
        target.do(FrontendRequest.SET_MEM_TABLE, MemoryTable(regions), (old.fd,) * len(regions))
    target.set_memory()
    if not old.is_released(1.0):
        raise Found("of 100 memory tables that were replaced a descriptor or mapping is left")


@SUITE.case("refused-table-is-given-up", clauses=("V-6",), edges=(11, 37), peers=("DPDK CVE-2019-14818",))
def refused_table_is_given_up(target: Target) -> None:
    """The descriptors of a refused memory table are closed, and nothing of them stays mapped."""
    tables: dict[str, WatchedMemory] = {}
    for what, regions, count in _REFUSED:
        target.begin_again()
        memory = tables[f"a memory table {what}"] = target.keep(WatchedMemory(_REGION))
        answer = target.attempt(FrontendRequest.SET_MEM_TABLE, MemoryTable(regions), (memory.fd,) * count)
        if answer.kind is Kind.REFUSED and not memory.is_released(1.0):
            raise Failed(f"a memory table {what}: refused, but its descriptors are kept")
    target.reconnect()
    raise_worst([Failed(what + KEPT) for what in still_held(tables, 2.0)])


def _refused() -> Iterator[tuple[str, tuple[MemoryRegion, ...], int]]:
    yield "with 2 descriptors for 1 region", (region(),), 2
    yield "with 1 descriptor for 2 regions", (region(0), region(1)), 1
    yield "whose file offset wraps", (region(offset=_TOP - PAGE_SIZE),), 1
    yield "with 40 descriptors for 1 region", (region(),), 40


_REFUSED: Final = tuple(_refused())
