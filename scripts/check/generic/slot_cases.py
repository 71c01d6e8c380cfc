"""Regions one by one (vhost-user, VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS)."""

from typing import Final

from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from scripts.check.generic.judging import Bad, judged, refuses
from scripts.check.generic.memory_cases import region
from scripts.check.generic.ring import GUEST_BASE, USER_BASE, whole
from scripts.check.generic.suite import SUITE
from scripts.check.generic.target import Kind, Target
from scripts.check.generic.watched_file import WatchedMemory
from scripts.check.machine.memory_file import MIB
from scripts.check.verdict import Failed, Found, require, skip

_ADD, _REMOVE = FrontendRequest.ADD_MEM_REG, FrontendRequest.REM_MEM_REG

_SLOTS_TRIED: Final = 1024
"""Most slots that are filled; a back-end may have any number of them."""


def _begin(target: Target) -> None:
    target.need(ProtocolFeature.CONFIGURE_MEM_SLOTS)
    target.negotiate()


def _need_acknowledgement(target: Target) -> None:
    if not target.acknowledges:
        skip("without REPLY_ACK there is no telling whether a region was refused")


@SUITE.case("number-of-slots", clauses=("V-25",))
def number_of_slots(target: Target) -> None:
    """GET_MAX_MEM_SLOTS has one answer, and it is not 0."""
    _begin(target)
    slots = target.connection.number(FrontendRequest.GET_MAX_MEM_SLOTS)
    require(slots > 0, "GET_MAX_MEM_SLOTS was answered with 0")
    target.do(_ADD, region(), (target.memory.fd,))
    again = target.connection.number(FrontendRequest.GET_MAX_MEM_SLOTS)
    require(again == slots, f"GET_MAX_MEM_SLOTS was answered with {slots} and then with {again}")


@SUITE.case("rings-in-an-added-region", clauses=("V-25",), peers=("QEMU",))
def rings_in_an_added_region(target: Target) -> None:
    """A ring runs in memory that was added as a region, and other regions come and go beside it."""
    _begin(target)
    target.do(_ADD, whole(target.memory), (target.memory.fd,))
    ring = target.ring()
    ring.start_at(4)
    target.start(ring, 4)
    beside = MemoryRegion(
        guest_address=GuestAddress(GUEST_BASE + 64 * MIB),
        size=MIB,
        user_address=UserAddress(USER_BASE + 64 * MIB),
        mmap_offset=0,
    )
    for _ in range(3):
        target.do(_ADD, beside, (target.memory.fd,))
        target.do(_REMOVE, beside)
    base = target.stop(ring)
    require(base == 4, f"after regions came and went a ring at index 4 is at {base}")


@SUITE.case("region-without-its-descriptor", clauses=("V-25",), edges=(51,))
def region_without_its_descriptor(target: Target) -> None:
    """ADD_MEM_REG with no descriptor, or with two, is refused."""
    target.need(ProtocolFeature.CONFIGURE_MEM_SLOTS)
    fd = target.memory.fd
    bad = [Bad(f"ADD_MEM_REG with {len(fds)} descriptors", _ADD, region(), fds) for fds in ((), (fd, fd))]
    refuses(target, bad, target.negotiate)


@SUITE.case(
    "region-too-many",
    clauses=("V-25",),
    edges=(52,),
    peers=("public/cloud-hypervisor-2340", "libvhost-user"),
    quick=False,
)
def region_too_many(target: Target) -> None:
    """As many regions as GET_MAX_MEM_SLOTS tells can be added, and not one more."""
    _begin(target)
    _need_acknowledgement(target)
    slots = target.facts.slots
    if not 0 < slots <= _SLOTS_TRIED:
        skip(f"{slots} slots are more than are tried")

    def small(number: int) -> MemoryRegion:
        at = 2 * number * PAGE_SIZE
        return MemoryRegion(
            guest_address=GuestAddress(GUEST_BASE + at),
            size=PAGE_SIZE,
            user_address=UserAddress(USER_BASE + at),
            mmap_offset=at,
        )

    for number in range(slots):
        target.do(_ADD, small(number), (target.memory.fd,))
    outcome = judged(f"region {slots + 1} of {slots}", target.attempt(_ADD, small(slots), (target.memory.fd,)))
    if outcome is not None:
        raise outcome
    target.do(_REMOVE, small(0))
    target.do(_ADD, small(0), (target.memory.fd,))


@SUITE.case(
    "region-twice",
    clauses=("F-regions",),
    edges=(42,),
    peers=("public/cloud-hypervisor-2340", "public/rust-vmm-vhost-224"),
)
def region_twice(target: Target) -> None:
    """A region that overlaps one that is there is refused."""
    _begin(target)
    target.do(_ADD, region(), (target.memory.fd,))
    bad = [Bad("ADD_MEM_REG of a region that is there", _ADD, region(), (target.memory.fd,))]
    refuses(target, bad, list, done=Found)


@SUITE.case("remove-what-is-not-there", clauses=("V-26",), edges=(53,), peers=("libvhost-user",))
def remove_what_is_not_there(target: Target) -> None:
    """REM_MEM_REG of a region that is not there, by one of its numbers, is refused and removes nothing."""
    _begin(target)
    target.do(_ADD, region(0), (target.memory.fd,))
    bad = [
        Bad("REM_MEM_REG of another region", _REMOVE, region(1)),
        Bad("REM_MEM_REG with another size", _REMOVE, region(0, size=MIB)),
        Bad("REM_MEM_REG with another guest address", _REMOVE, region(0, guest=GUEST_BASE + MIB)),
    ]
    refuses(target, bad, lambda: _added(target))
    target.do(_REMOVE, region(0))


def _added(target: Target) -> None:
    if not target.protocol_features:
        target.negotiate()
        target.do(_ADD, region(0), (target.memory.fd,))


@SUITE.case(
    "remove-twice", clauses=("V-26",), edges=(53,), peers=("public/cloud-hypervisor-2340", "public/rust-vmm-vhost-224")
)
def remove_twice(target: Target) -> None:
    """A region that was removed cannot be removed again."""
    _begin(target)
    target.do(_ADD, region(), (target.memory.fd,))
    target.do(_REMOVE, region())
    refuses(target, [Bad("REM_MEM_REG of a region that was removed", _REMOVE, region())], list)


@SUITE.case("remove-with-a-descriptor", clauses=("V-6", "V-26"), edges=(54,))
def remove_with_a_descriptor(target: Target) -> None:
    """REM_MEM_REG may come with one descriptor, which is closed."""
    _begin(target)
    target.do(_ADD, region(), (target.memory.fd,))
    pipe = target.keep_pipe()
    answer = target.attempt(_REMOVE, region(), (pipe.fd,))
    require(pipe.is_released(), "the descriptor that came with REM_MEM_REG is not closed", "V-6")
    outcome = judged("REM_MEM_REG with a descriptor", answer, None)
    if outcome is not None:
        raise outcome
    if answer.kind is Kind.REFUSED:
        raise Found("REM_MEM_REG with a descriptor, which the text lets a back-end accept, was refused")


@SUITE.case("remove-by-addresses", clauses=("V-26",), edges=(55,))
def remove_by_addresses(target: Target) -> None:
    """REM_MEM_REG finds its region by the addresses and the size; the file offset does not count."""
    _begin(target)
    _need_acknowledgement(target)
    target.do(_ADD, region(1), (target.memory.fd,))
    try:
        target.do(_REMOVE, region(1, offset=0))
    except Failed as error:
        raise Found(f"a region is not found when the file offset differs: {error.reason}") from error


@SUITE.case("removed-memory-is-given-up", clauses=("V-27", "V-6"))
def removed_memory_is_given_up(target: Target) -> None:
    """Memory that was removed is unmapped, and its descriptor closed."""
    _begin(target)
    memory = target.keep(WatchedMemory(2 * MIB))
    target.do(_ADD, region(), (memory.fd,))
    target.do(_REMOVE, region())
    if not memory.is_released(1.0):
        raise Found("memory that was removed is still mapped, or its descriptor open, after 1 s")


@SUITE.case("refused-region-is-given-up", clauses=("V-6",), edges=(11, 51))
def refused_region_is_given_up(target: Target) -> None:
    """The descriptors of a refused ADD_MEM_REG are closed."""
    _begin(target)
    memory = target.keep(WatchedMemory(2 * MIB))
    answer = target.attempt(_ADD, region(size=0), (memory.fd, memory.fd))
    if answer.kind in (Kind.ACCEPTED, Kind.UNHEARD):
        skip("the back-end did not refuse an empty region with two descriptors")
    require(memory.is_released(2.0), f"a region was {answer.kind.value}, but its descriptors are kept")
