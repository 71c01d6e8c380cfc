"""What is right and wrong in a way that only a packed ring can be."""

from protocol.memory import PAGE_SIZE
from protocol.packed_ring import AVAIL_USED, VIRTQ_DESC_F_USED
from protocol.process.memory_fence import full_fence
from scripts.check.device.cases.chains import (
    INDIRECT,
    NEXT,
    WITHOUT_INDIRECT,
    WRITE,
    harms_nothing,
    judge,
    machine_with_pages,
    page,
)
from scripts.check.device.trial import SUITE, Trial
from scripts.check.machine.machine import Machine
from scripts.check.machine.memory_file import DATA_AT
from scripts.check.machine.raw_ring import Raw, put_packed, require_back, used_count, used_element
from scripts.check.verdict import require


def _machine(trial: Trial, *, indirect: bool = False, size: int = 128) -> Machine:
    trial.packed = True
    return machine_with_pages(trial, indirect=indirect, size=size)


def _kick(machine: Machine) -> None:
    full_fence()
    machine.reporting.kick()


@SUITE.case("packed-any-buffer-id", clauses=("P-16",), edges=(124,), quick=False)
def any_buffer_id(trial: Trial) -> None:
    """The used descriptor has the id that the driver gave, which need not be the descriptor's place."""
    for buffer_id in (1, 77, 127):
        machine = _machine(trial)
        put_packed(machine.reporting, [page(machine)], buffer_id=buffer_id)
        _kick(machine)
        require_back(machine.reporting, f"a buffer with id {buffer_id}", "P-16")
        seen = used_element(machine.reporting)[0]
        require(seen == buffer_id, f"the buffer had id {buffer_id}, the used descriptor has {seen}", "P-16")


@SUITE.case("packed-odd-size", clauses=("P-1",), quick=True)
def odd_size(trial: Trial) -> None:
    """A ring of a size that is no power of two works, over many laps."""
    trial.packed = True
    machine = trial.machine(size=13)
    for _ in range(60):
        machine.check_alive()


@SUITE.case("packed-chain-over-the-end", clauses=("P-2", "P-16"), edges=(123,))
def over_the_end(trial: Trial) -> None:
    """A list that begins at the end of the ring goes on at its beginning, with the wrap counter flipped."""
    trial.packed = True
    machine = trial.machine(size=8, wanted=WITHOUT_INDIRECT)
    queue = machine.reporting
    for turn in range(40):
        given = [(DATA_AT + n * PAGE_SIZE, PAGE_SIZE) for n in range(3)]
        machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
        queue.offer((), machine.buffers(given))
        require(len(queue.collect()) == 1, f"turn {turn}: the list did not come back", "P-16")
        left = machine.memory.present(DATA_AT, DATA_AT + 4 * PAGE_SIZE)
        require(len(left) in (1, 4), f"turn {turn}: of a list of three pages {4 - len(left)} went", "M-safe")


@SUITE.case("packed-unavailable-untouched", clauses=("P-4",), quick=False)
def unavailable(trial: Trial) -> None:
    """A descriptor whose bits say that it is not available is not used."""
    for flags in (0, VIRTQ_DESC_F_USED, AVAIL_USED):
        machine = _machine(trial)
        ring = machine.reporting.packed
        ring.write_descriptor(0, machine.address(DATA_AT), PAGE_SIZE, 0)
        ring.halves[7] = WRITE | flags
        _kick(machine)
        machine.barrier()
        harms_nothing(machine, "P-4", may_go=frozenset())
        require(ring.halves[7] == WRITE | flags, f"the device used a descriptor with flags {WRITE | flags:#x}", "P-4")


@SUITE.case("packed-list-longer-than-ring", clauses=("P-8", "M-safe"), edges=(95,), quick=True)
def longer_than_ring(trial: Trial) -> None:
    """A list whose every descriptor links to the next, all around the ring, is not walked for ever."""
    machine = _machine(trial, size=16)
    put_packed(machine.reporting, [page(machine)._replace(flags=WRITE | NEXT)] * 16)
    _kick(machine)
    judge(machine, "P-8")


@SUITE.case("packed-indirect-in-list", clauses=("P-13", "M-safe"), edges=(101,))
def indirect_in_list(trial: Trial) -> None:
    """An indirect descriptor within a list, which the packed format forbids, harms nothing."""
    machine = _machine(trial, indirect=True)
    table = machine.address(machine.reporting.tables)
    put_packed(machine.reporting, [page(machine)._replace(flags=WRITE | NEXT), Raw(table, 16, INDIRECT)])
    _kick(machine)
    judge(machine)


@SUITE.case("packed-id-beyond-ring", clauses=("M-safe",), edges=(124,))
def id_beyond_ring(trial: Trial) -> None:
    """An id beyond the ring's size, which is the driver's to choose, comes back or stops the queue."""
    machine = _machine(trial)
    put_packed(machine.reporting, [page(machine)], buffer_id=0xFFFF)
    _kick(machine)
    judge(machine)
    if used_count(machine.reporting):
        seen = used_element(machine.reporting)[0]
        require(seen == 0xFFFF, f"the buffer had id 65535, the used descriptor has {seen}", "P-16")


@SUITE.case("packed-write-flag-of-used", clauses=("P-16",))
def write_flag_of_used(trial: Trial) -> None:
    """A used descriptor whose device wrote nothing has a length of 0, or no WRITE flag."""
    machine = _machine(trial)
    put_packed(machine.reporting, [page(machine)])
    _kick(machine)
    require_back(machine.reporting, "the buffer", "P-16")
    flags, length = machine.reporting.packed.halves[7], used_element(machine.reporting)[1]
    require(
        not flags & WRITE or length in (0, PAGE_SIZE),
        f"the used descriptor's flags {flags:#x} have WRITE, and its length {length} says that bytes were written",
        "P-16",
    )
    require(flags & AVAIL_USED == AVAIL_USED, f"flags {flags:#x} are not those of a used descriptor", "P-16")


@SUITE.case("packed-reserved-event-flags", clauses=("P-15",))
def reserved_event_flags(trial: Trial) -> None:
    """The reserved value of the driver's event flags stops nothing."""
    trial.packed = True
    machine = trial.machine()
    machine.reporting.packed.driver_event[0] = 3 << 16
    full_fence()
    machine.check_survives()
