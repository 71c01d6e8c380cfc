"""Setting rings up (vhost-user, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK)."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from protocol.memory import UserAddress
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import MemoryTable, VringAddress, VringFile, VringState
from protocol.virtio import PROTOCOL_FEATURES
from scripts.check.generic.judging import Bad, judged, raise_worst, refuses
from scripts.check.generic.memory_cases import region
from scripts.check.generic.ring import USER_BASE, Ring
from scripts.check.generic.suite import SUITE
from scripts.check.generic.target import Kind, Target
from scripts.check.machine.memory_file import MIB
from scripts.check.verdict import Failed, Found, Outcome, require, skip

_NUM, _ADDR, _BASE = FrontendRequest.SET_VRING_NUM, FrontendRequest.SET_VRING_ADDR, FrontendRequest.SET_VRING_BASE
_KICK, _CALL, _ERR = FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL, FrontendRequest.SET_VRING_ERR
_ENABLE = FrontendRequest.SET_VRING_ENABLE

_INDEX_MAX: Final = 0xFF  # of the messages that come with a descriptor


@SUITE.case(
    "queue-number-too-large",
    clauses=("V-28",),
    edges=(58,),
    peers=("DPDK CVE-2020-10723", "public/rust-vmm-vhost-211", "libvhost-user"),
)
def queue_number_too_large(target: Target) -> None:
    """A queue number beyond the last queue is refused in every message, also one that fits after a truncation."""
    refuses(target, list(_beyond(target)), target.negotiated)


def _beyond(target: Target) -> Iterator[Bad]:
    ring = target.ring()
    numbers = [0x1_0000, 0x100_0000, 0xFFFF_FFFF]
    if target.facts.queues:
        numbers.insert(0, target.facts.queues)
    for number in numbers:
        yield Bad(f"SET_VRING_NUM of queue {number:#x}", _NUM, VringState(number, 64))
        yield Bad(f"SET_VRING_BASE of queue {number:#x}", _BASE, VringState(number, 0))
        yield Bad(f"SET_VRING_ADDR of queue {number:#x}", _ADDR, replace(ring.address(), index=number))
        yield Bad(f"SET_VRING_ENABLE of queue {number:#x}", _ENABLE, VringState(number, 1))
    if 0 < target.facts.queues <= _INDEX_MAX:
        for request in (_KICK, _CALL, _ERR):
            yield Bad(f"{request.name} of queue 255", request, VringFile(_INDEX_MAX, True), (ring.call,))


@SUITE.case("base-of-a-queue-that-is-not-there", clauses=("V-28",), edges=(58,), peers=("libvhost-user",))
def base_of_a_queue_that_is_not_there(target: Target) -> None:
    """GET_VRING_BASE of a queue that is not there ends the connection, for its reply cannot say error."""
    target.negotiated()
    answer = target.attempt(FrontendRequest.GET_VRING_BASE, VringState(0x1_0000, 0))
    if answer.kind is Kind.SILENT:
        raise Failed("GET_VRING_BASE of queue 0x10000 was not answered, and the connection goes on", "V-9")
    if answer.kind is Kind.ACCEPTED and len(answer.data) == 8 and int.from_bytes(answer.data[:4], "little") == 0x1_0000:
        raise Failed(f"GET_VRING_BASE of queue 0x10000 was answered with {answer.data.hex()}")


@SUITE.case("queue-size-that-cannot-be", clauses=("V-29",), edges=(59,), peers=("rust-vmm", "DPDK"))
def queue_size_that_cannot_be(target: Target) -> None:
    """A queue size of 0, or of more than 32768 entries, is refused."""
    bad = [
        Bad(f"SET_VRING_NUM {size}", _NUM, VringState(0, size)) for size in (0, 65536, 65536 + 64, 0x8000_0000, 40000)
    ]
    refuses(target, bad, target.negotiated)


@SUITE.case("queue-size-no-power-of-two", clauses=("V-29",), edges=(59,), peers=("rust-vmm", "DPDK"))
def queue_size_no_power_of_two(target: Target) -> None:
    """A split ring whose size is no power of two is refused."""
    refuses(target, [Bad("SET_VRING_NUM 3", _NUM, VringState(0, 3))], target.negotiated, done=Found)


@SUITE.case("largest-ring", clauses=("V-29",), edges=(60,), peers=("crosvm",))
def largest_ring(target: Target) -> None:
    """A ring of 32768 entries, crosvm's default, is served, or refused if the back-end has a lower limit."""
    target.negotiated()
    answer = target.attempt(_NUM, VringState(0, 32768))
    outcome = judged("SET_VRING_NUM 32768", answer, None)
    if answer.kind is Kind.REFUSED:
        raise Found("a ring of 32768 entries is refused: crosvm needs a limit of its own for this back-end")
    if answer.kind is not Kind.ACCEPTED and outcome is not None:
        raise outcome
    ring = target.ring(0, 32768)
    ring.start_at(40000)
    target.start(ring, 40000)
    base = target.stop(ring)
    require(base == 40000, f"a ring of 32768 entries at index 40000 is at {base}", "V-32")


def _with_address(target: Target, what: str, address: VringAddress) -> Outcome | None:
    """Set ring 0 up with ``address`` and start it. It is refused, or not served: nothing is offered on it."""
    target.negotiated()
    ring = target.ring()
    target.do(_NUM, VringState(0, ring.size))
    target.do(_BASE, VringState(0, 0))
    answer = target.attempt(_ADDR, address)
    outcome = judged(what, answer, None)
    if answer.kind is Kind.ACCEPTED:
        outcome = judged(f"{what}, when it was started", target.attempt(_KICK, VringFile(0, True), (ring.kick,)), None)
        if target.connection.is_usable():
            target.attempt(_ENABLE, VringState(0, 1))
            ring.kick_it()
    if not target.connection.is_usable() and outcome is None:
        outcome = Found(f"{what} ended the connection; QEMU then loses the device")
    target.reconnect()
    return outcome


@SUITE.case("misaligned-ring", clauses=("V-30",), edges=(61,), peers=("rust-vmm",))
def misaligned_ring(target: Target) -> None:
    """A ring with a misaligned part is refused, or not served."""
    right = target.ring().address()
    outcomes = [
        _with_address(target, "a descriptor table at 8 modulo 16", _moved(right, descriptor=8)),
        _with_address(target, "an available ring at an odd address", _moved(right, available=1)),
        _with_address(target, "a used ring at 2 modulo 4", _moved(right, used=2)),
    ]
    raise_worst(outcomes)


def _moved(address: VringAddress, *, descriptor: int = 0, available: int = 0, used: int = 0) -> VringAddress:
    return replace(
        address,
        descriptor=UserAddress(address.descriptor + descriptor),
        available=UserAddress(address.available + available),
        used=UserAddress(address.used + used),
    )


@SUITE.case(
    "ring-outside-the-memory", clauses=("V-30",), edges=(62,), peers=("libvhost-user", "DPDK CVE-2018-1059", "rust-vmm")
)
def ring_outside_the_memory(target: Target) -> None:
    """A ring that lies outside the memory, or leaves it, is refused or not served, and nothing crashes."""
    right = target.ring().address()
    beyond = USER_BASE + target.memory.size
    nowhere = UserAddress(0)
    outcomes = [
        _with_address(
            target, "a ring at address 0", replace(right, descriptor=nowhere, available=nowhere, used=nowhere)
        ),
        _with_address(target, "a descriptor table beyond", replace(right, descriptor=UserAddress(beyond + 16 * MIB))),
        _with_address(target, "a used ring that leaves the memory", replace(right, used=UserAddress(beyond - 4))),
        _with_address(target, "a descriptor table that leaves it", replace(right, descriptor=UserAddress(beyond - 16))),
        _with_address(target, "an available ring that wraps", replace(right, available=UserAddress((1 << 64) - 4))),
    ]
    raise_worst(outcomes)


@SUITE.case("ring-across-regions", clauses=("V-30",), edges=(63,), peers=("DPDK CVE-2018-1059",))
def ring_across_regions(target: Target) -> None:
    """A ring part that begins in one region and ends in another, elsewhere in the file, is refused or not served."""
    target.negotiate()
    first, second = region(0), region(1, offset=8 * MIB)
    target.do(FrontendRequest.SET_MEM_TABLE, MemoryTable((first, second)), (target.memory.fd,) * 2)
    right = VringAddress(
        index=0,
        flags=0,
        descriptor=UserAddress(second.user_address - 512),
        available=UserAddress(USER_BASE + MIB),
        used=UserAddress(USER_BASE + MIB + 65536),
    )
    ring = target.ring()
    target.do(_NUM, VringState(0, ring.size))
    outcome = judged("a descriptor table across two regions", target.attempt(_ADDR, right), None)
    if outcome is not None:
        raise outcome


Step = Callable[[Target, Ring, int], None]


def _number(target: Target, ring: Ring, _base: int) -> None:
    target.do(_NUM, VringState(ring.index, ring.size))


def _addresses(target: Target, ring: Ring, _base: int) -> None:
    target.do(_ADDR, ring.address())


def _place(target: Target, ring: Ring, base: int) -> None:
    target.do(_BASE, VringState(ring.index, base))


def _call(target: Target, ring: Ring, _base: int) -> None:
    target.do(_CALL, VringFile(ring.index, True), (ring.call,))


def _kick(target: Target, ring: Ring, _base: int) -> None:
    target.do(_KICK, VringFile(ring.index, True), (ring.kick,))


_ORDERS: Final[dict[str, tuple[Step, ...]]] = {
    "QEMU": (_call, _number, _place, _addresses, _kick, _call),
    "User Mode Linux": (_call, _number, _place, _addresses, _kick),
    "Cloud Hypervisor": (_number, _addresses, _place, _call, _kick),
    "crosvm": (_number, _addresses, _place, _call, _kick),
    "addresses last": (_number, _kick, _call, _place, _addresses),
}


@SUITE.case(
    "orders-of-setting-up",
    clauses=("V-31", "V-32"),
    edges=(64, 65),
    peers=("QEMU", "User Mode Linux", "Cloud Hypervisor", "crosvm"),
)
def orders_of_setting_up(target: Target) -> None:
    """A ring is served in whichever order a front-end sends its parts."""
    outcomes: list[Outcome | None] = []
    for (name, order), base in zip(_ORDERS.items(), itertools.count(3), strict=False):
        target.negotiated()
        ring = target.ring()
        ring.start_at(base)
        try:
            for step in order:
                step(target, ring, base)
            target.enable(ring)
            ring.kick_it()
            seen = target.stop(ring)
        except Failed as error:
            kind = Found if name == "addresses last" else Failed
            outcomes.append(kind(f"in the order of {name}: {error.reason}"))
        else:
            outcomes.append(
                None if seen == base else Failed(f"in the order of {name} a ring at index {base} is at {seen}", "V-32")
            )
        target.reconnect()
    raise_worst(outcomes)


@SUITE.case("no-base", clauses=("V-31",), peers=("public/rust-vmm-vhost-240",))
def no_base(target: Target) -> None:
    """A fresh ring is served from index 0 without SET_VRING_BASE."""
    target.negotiated()
    ring = target.ring()
    target.start(ring, None)
    base = target.stop(ring)
    if base != 0:
        raise Found(f"without SET_VRING_BASE a fresh ring is at {base}")


@SUITE.case("base-with-upper-bits", clauses=("V-32",), edges=(69,))
def base_with_upper_bits(target: Target) -> None:
    """A split ring's base above 65535 is refused, or its upper bits are left aside."""
    target.negotiated()
    answer = target.attempt(_BASE, VringState(0, 0x0003_0007))
    outcome = judged("SET_VRING_BASE 0x30007", answer, None)
    if outcome is not None:
        raise outcome


@SUITE.case("enable-with-2", edges=(80,), peers=("rust-vmm",))
def enable_with_2(target: Target) -> None:
    """SET_VRING_ENABLE with a number other than 0 and 1 is refused."""
    if not target.facts.features & PROTOCOL_FEATURES:
        skip("the back-end does not offer VHOST_USER_F_PROTOCOL_FEATURES")
    refuses(target, [Bad("SET_VRING_ENABLE 2", _ENABLE, VringState(0, 2))], target.negotiated, done=Found)


@SUITE.case("enable-what-was-not-set-up", clauses=("V-31",), edges=(81,), peers=("QEMU",))
def enable_what_was_not_set_up(target: Target) -> None:
    """Enabling a ring that was never set up is done and has no effect: QEMU enables all of them."""
    if not target.facts.features & PROTOCOL_FEATURES:
        skip("the back-end does not offer VHOST_USER_F_PROTOCOL_FEATURES")
    target.negotiated()
    answer = target.attempt(_ENABLE, VringState(target.queues - 1, 1))
    if answer.kind not in (Kind.ACCEPTED, Kind.UNHEARD):
        raise Found(f"enabling a ring that was not set up was {answer.kind.value}: QEMU does so with all rings")
    target.check_alive()


@SUITE.case("enable-without-bit-30", edges=(82,), peers=("rust-vmm",))
def enable_without_bit_30(target: Target) -> None:
    """SET_VRING_ENABLE while bit 30 is not negotiated is refused or ignored."""
    target.negotiate()
    target.do(FrontendRequest.SET_FEATURES, target.features & ~PROTOCOL_FEATURES)
    target.set_memory()
    refuses(target, [Bad("SET_VRING_ENABLE without bit 30", _ENABLE, VringState(0, 1))], list, done=None)


@SUITE.case("disabled-and-enabled", clauses=("V-36",), edges=(83,), peers=("public/dpdk-vhost-vfe-40",))
def disabled_and_enabled(target: Target) -> None:
    """Disabling and enabling a ring, also right before GET_VRING_BASE, leaves it where it is."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(11)
    target.start(ring, 11)
    for on in (0, 1, 1, 0, 0, 1, 0):
        target.enable(ring, on)
        ring.kick_it()
    base = target.stop(ring)
    require(base == 11, f"after being disabled and enabled a ring at index 11 is at {base}")


@SUITE.case("all-queues", clauses=("V-31", "V-36"), edges=(81,))
def all_queues(target: Target) -> None:
    """Several rings run at a time, each at its own index."""
    target.negotiated()
    rings = [target.ring(index) for index in range(target.queues)]
    for number, ring in enumerate(rings):
        ring.start_at(100 + number)
        target.start(ring, 100 + number)
    bases = [target.stop(ring) for ring in reversed(rings)]
    expected = [100 + number for number in reversed(range(len(rings)))]
    require(bases == expected, f"rings at {expected} told {bases}")
