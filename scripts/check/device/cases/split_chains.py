"""What is wrong in a way that only a split ring can be."""

from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.split_ring import Descriptor
from scripts.check.device.cases.chains import (
    INDIRECT,
    NEXT,
    WRITE,
    harms_nothing,
    judge,
    machine_with_pages,
    page,
)
from scripts.check.device.trial import SUITE, Trial
from scripts.check.machine.machine import Machine
from scripts.check.machine.memory_file import DATA_AT
from scripts.check.machine.raw_ring import publish_split, require_back, table_of, used_element
from scripts.check.verdict import require


def _put(machine: Machine, descriptors: dict[int, Descriptor], heads: list[int], advance: int | None = None) -> None:
    queue = machine.reporting
    for index, one in descriptors.items():
        queue.split.write_descriptor(index, one)
    publish_split(queue, heads, advance=advance)
    queue.kick()


def _page(machine: Machine, flags: int = WRITE, following: int = 0, number: int = 0) -> Descriptor:
    return Descriptor(machine.address(DATA_AT + number * PAGE_SIZE), PAGE_SIZE, flags, following)


@SUITE.case("split-head-beyond-table", clauses=("M-safe",), edges=(93,))
def head_beyond(trial: Trial) -> None:
    """A head that is no descriptor of the table harms nothing."""
    for head in (128, 129, 0x7FFF, 0xFFFF):
        machine = machine_with_pages(trial)
        _put(machine, {0: _page(machine)}, [head])
        judge(machine)


@SUITE.case("split-next-beyond-table", clauses=("M-safe",), edges=(94,))
def next_beyond(trial: Trial) -> None:
    """A link that leaves the table harms nothing."""
    for following in (128, 0xFFFF):
        machine = machine_with_pages(trial)
        _put(machine, {0: _page(machine, WRITE | NEXT, following)}, [0])
        judge(machine)


@SUITE.case("split-loop", clauses=("S-5", "M-safe"), edges=(95,), quick=True)
def loop(trial: Trial) -> None:
    """A chain without an end, of one descriptor or of three, harms nothing and is not walked for ever."""
    for links in ((0,), (1, 2, 0)):
        machine = machine_with_pages(trial)
        chain = {at: _page(machine, WRITE | NEXT, following) for at, following in enumerate(links)}
        _put(machine, chain, [0])
        judge(machine, "S-5")


@SUITE.case("split-loop-in-table", clauses=("S-5", "M-safe"), edges=(95,))
def loop_in_table(trial: Trial) -> None:
    """An indirect table whose entries link in a circle is not walked for ever."""
    machine = machine_with_pages(trial, indirect=True)
    queue = machine.reporting
    table = table_of([page(machine)._replace(flags=WRITE | NEXT)] * 2, packed=False, following=(1, 0))
    machine.memory.write(queue.tables, table)
    _put(machine, {0: Descriptor(machine.address(queue.tables), len(table), INDIRECT, 0)}, [0])
    judge(machine, "S-5")


@SUITE.case("split-avail-jumps", clauses=("S-13", "M-safe"), edges=(92,), quick=False)
def avail_jumps(trial: Trial) -> None:
    """An available index that is further ahead than the ring is long harms nothing."""
    for ahead in (129, 0x4000, 0xFFFF):
        machine = machine_with_pages(trial)
        _put(machine, {0: _page(machine)}, [0], advance=ahead)
        judge(machine)


@SUITE.case("split-avail-full", clauses=("S-22",), edges=(92,))
def avail_full(trial: Trial) -> None:
    """An available index that is ahead by the ring's length is served: the ring is full."""
    machine = machine_with_pages(trial, size=16)
    chain = {n: _page(machine, number=0) for n in range(16)}
    _put(machine, chain, list(range(16)))
    require_back(machine.reporting, "buffers of a full ring", "S-22", count=16)
    harms_nothing(machine)


@SUITE.case("split-head-twice", clauses=("M-safe",))
def head_twice(trial: Trial) -> None:
    """The same head twice in the available ring harms nothing."""
    machine = machine_with_pages(trial)
    _put(machine, {0: _page(machine)}, [0, 0, 0])
    judge(machine)


@SUITE.case("split-direct-then-indirect", clauses=("S-11",), edges=(101,), quick=True)
def direct_then_indirect(trial: Trial) -> None:
    """A chain of a direct descriptor followed by an indirect one is served, as every device must."""
    machine = machine_with_pages(trial, indirect=True)
    queue = machine.reporting
    machine.memory.write(queue.tables, table_of([page(machine, n) for n in (1, 2)], packed=False))
    _put(
        machine,
        {0: _page(machine, WRITE | NEXT, 1), 1: Descriptor(machine.address(queue.tables), 32, INDIRECT, 0)},
        [0],
    )
    require_back(queue, "a chain of a direct and an indirect descriptor", "S-11")
    gone = {DATA_AT + n * PAGE_SIZE for n in range(3)}
    left = machine.memory.present() & gone
    require(left in (set(), gone), f"of three pages {len(left)} are still there", "S-11")
    harms_nothing(machine, may_go=frozenset(gone))


@SUITE.case("split-heads-anywhere", clauses=("S-17",))
def heads_anywhere(trial: Trial) -> None:
    """Descriptors may lie anywhere in the table; the used element names the head."""
    machine = machine_with_pages(trial)
    last = machine.reporting.layout.size - 1
    chain = {21: _page(machine, WRITE | NEXT, 7), 7: _page(machine, WRITE | NEXT, last), last: _page(machine)}
    _put(machine, chain, [21])
    require_back(machine.reporting, "the chain", "S-17")
    head = used_element(machine.reporting)[0]
    require(head == 21, f"the chain's head is 21, the used element says {head}", "S-17")
    harms_nothing(machine)


@SUITE.case("split-chain-as-long-as-ring", clauses=("S-8",))
def as_long_as_ring(trial: Trial) -> None:
    """A chain of as many descriptors as the ring has is served."""
    machine = machine_with_pages(trial, size=32)
    last = 31
    chain = {n: _page(machine, WRITE | (NEXT if n < last else 0), (n + 1) % 32) for n in range(32)}
    _put(machine, chain, [0])
    require_back(machine.reporting, "a chain as long as the ring", "S-8")
    harms_nothing(machine)


@SUITE.case("split-one-descriptor-ring", clauses=("S-1",), quick=False)
def one_descriptor_ring(trial: Trial) -> None:
    """The smallest ring, of one descriptor, works where the device takes it; the largest too."""
    for size in (1, 2, 1024, 32768):
        try:
            machine = trial.machine(size=size)
        except BalloonError as error:
            require(size != 1024, f"a ring of {size} descriptors is refused: {error}", "S-1")
            continue
        for _ in range(3):
            machine.check_alive()
