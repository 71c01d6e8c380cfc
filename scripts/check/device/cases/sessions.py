"""Rings that are stopped, disabled, moved and started again while buffers are on their way: each comes back once."""

import os
import socket
import time
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.packed_ring import FRESH_BASE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringFile, VringState
from scripts.check.device.cases.reporting import BLOCK, judge_discard, pages_of
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.memory_file import DATA_AT, MIB, as_ranges
from scripts.check.machine.vhost_user_device import VhostUserMachine
from scripts.check.verdict import Found, require

SLOW: Final = 1.0
"""Seconds for a report of 128 MiB of touched memory beyond which a driver's author has to know it."""


def started(trial: Trial) -> VhostUserMachine:
    """Return a machine whose reporting queue was stopped, so that the case starts it."""
    machine = trial.vhost_user()
    base = machine.stop(machine.reporting.index)
    require(base in (0, FRESH_BASE), f"a ring that served nothing stops at base {base:#x}", "V-36")
    return machine


@ring_case("ring-disabled", clauses=("V-34", "V-35"), edges=(83,), peers=("public/rust-vmm-vhost-240",), quick=True)
def disabled(trial: Trial) -> None:
    """A disabled ring discards nothing; when it is enabled it serves what it has, without another kick."""
    machine = trial.vhost_user()
    queue = machine.reporting
    machine.report((DATA_AT, PAGE_SIZE))
    machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
    before = machine.memory.present()
    machine.connection.ask(FrontendRequest.SET_VRING_ENABLE, VringState(queue.index, 0))
    queue.offer((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
    queue.kick()
    machine.barrier()
    back = not queue.gives_nothing_back(0.05)
    machine.check_gone(before, set(), "V-34")
    machine.connection.ask(FrontendRequest.SET_VRING_ENABLE, VringState(queue.index, 1))
    if back:
        raise Found("a disabled ring gives reports back and discards nothing: the memory is not returned", "V-34")
    if not becomes_true(lambda: queue.take_used() is not None, 2.0):
        queue.kick()
        again = becomes_true(lambda: queue.take_used() is not None, 2.0)
        require(
            False,
            f"an enabled ring does not serve what it has ({'one more kick helps' if again else 'nor later'})",
            "V-35",
        )


@ring_case("ring-stopped", clauses=("V-33", "V-36"), edges=(84, 87), quick=True)
def stopped(trial: Trial) -> None:
    """A stopped ring is not touched, kicked or not; the base says where it goes on."""
    machine = trial.vhost_user()
    queue = machine.reporting
    for number in range(5):
        machine.report((DATA_AT + number * PAGE_SIZE, PAGE_SIZE))
    machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
    before = machine.memory.present()
    base = machine.stop(queue.index)
    if not trial.packed:
        require(base == 5, f"after 5 buffers the ring stops at base {base}", "V-36")
    queue.offer((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
    ring = machine.memory.read(queue.place, queue.layout.bytes)
    queue.kick()
    machine.barrier()
    require(queue.gives_nothing_back(0.05), "a stopped ring gives a buffer back", "V-33")
    require(machine.memory.read(queue.place, queue.layout.bytes) == ring, "a stopped ring was written", "V-33")
    machine.check_gone(before, set(), "V-33")
    machine.start(queue.index, base)
    queue.collect()
    judge_discard(machine, before, {DATA_AT})


@ring_case("ring-stopped-in-mid-report", clauses=("V-36", "V-32"), edges=(85, 86, 91), quick=True)
def stopped_in_mid_report(trial: Trial) -> None:
    """A stop with a large report on its way loses no buffer and repeats none; nothing is discarded after it."""
    machine = trial.vhost_user()
    queue = machine.reporting
    given = [(DATA_AT + number * BLOCK, BLOCK // 2) for number in range(24)]
    for one in given:
        machine.memory.touch(*one)
    heads = [queue.add((), machine.buffers([one])) for one in given]
    queue.kick()
    came: list[int] = []
    base = machine.stop(queue.index)
    at_stop = machine.memory.present()
    while (used := queue.take_used()) is not None:
        came.append(used.head)
    require(queue.gives_nothing_back(0.03), "a buffer came back after the ring was stopped", "V-36")
    late = at_stop - machine.memory.present()
    require(not late, f"pages were discarded after the ring was stopped: {as_ranges(late)}", "V-36")
    machine.start(queue.index, base)
    came += [used.head for used in queue.collect(len(heads) - len(came))]
    require(sorted(came) == sorted(heads), f"of buffers {sorted(heads)} came back {sorted(came)}", "V-36")
    left = machine.memory.present() & pages_of(*given)
    require(left in (set(), pages_of(*given)), f"acknowledged and not discarded: {as_ranges(left)}", "V-36")


@SUITE.case(
    "ring-used-index-from-memory", clauses=("V-32",), edges=(70,), peers=("public/rust-vmm-vhost-180",), quick=True
)
def used_index_from_memory(trial: Trial) -> None:
    """The used index goes on where it is in the ring, whatever the base is."""
    machine = started(trial)
    queue = machine.reporting
    queue.split.used[1], queue.split.avail[1] = 3, 7  # four buffers of an earlier life never came back
    machine.memory.touch(DATA_AT, PAGE_SIZE)
    machine.start(queue.index, 7)
    ring = queue.split
    ring.desc[:16] = (machine.address(DATA_AT)).to_bytes(8, "little") + PAGE_SIZE.to_bytes(4, "little") + b"\2\0\0\0"
    ring.avail[2 + 7] = 0
    ring.avail[1] = 8
    queue.kick()
    require(becomes_true(lambda: ring.used[1] != 3), "a buffer after base 7 does not come back", "V-32")
    require(ring.used[1] == 4, f"the used index went from 3 to {ring.used[1]}", "V-32")


@ring_case("table-sent-again", clauses=("V-24",), edges=(47,), quick=True)
def table_sent_again(trial: Trial) -> None:
    """The same memory table while rings run loses no buffer."""
    machine = trial.vhost_user()
    for turn in range(10):
        machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
        before = machine.memory.present()
        machine.reporting.offer((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
        machine.set_memory()
        require(len(machine.reporting.collect()) == 1, f"turn {turn}: the report is lost", "V-24")
        judge_discard(machine, before, {DATA_AT})


@SUITE.case("call-full-socket", clauses=("V-43",), edges=(76,), quick=True)
def call_full_socket(trial: Trial) -> None:
    """A call descriptor that blocks stops nothing: a socket that the driver does not read."""
    machine = trial.vhost_user()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _set_call(machine, theirs.fileno())
        theirs.setblocking(True)
        machine.memory.touch(DATA_AT, 64 * PAGE_SIZE)
        for number in range(600):
            machine.reporting.driver.enable_interrupt()
            machine.report((DATA_AT + number % 64 * PAGE_SIZE, PAGE_SIZE))
        machine.check_alive()


@SUITE.case("call-closed-peer", clauses=("V-43",), edges=(77,), quick=True)
def call_closed_peer(trial: Trial) -> None:
    """A call descriptor whose other end is gone stops nothing: a socket, and a pipe."""
    machine = trial.vhost_user()
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        _set_call(machine, theirs.fileno())
    machine.check_alive()
    read, write = os.pipe()
    os.close(read)
    try:
        _set_call(machine, write)
    finally:
        os.close(write)
    machine.check_alive()


def _set_call(machine: VhostUserMachine, fd: int) -> None:
    answer = machine.connection.ask(
        FrontendRequest.SET_VRING_CALL, VringFile(machine.reporting.index, has_file=True), (fd,)
    )
    if answer:
        raise Found(f"a call descriptor of this kind is refused ({answer})", "V-43")


@SUITE.case("config-change-unheard", clauses=("V-51",), edges=(139, 140), quick=True)
def config_change_unheard(trial: Trial) -> None:
    """A front-end that reads nothing from the back-end's channel, or has closed it, stops nothing."""
    machine = trial.vhost_user()
    for number in range(64):
        trial.device.resize(machine, 1024 + number)
    machine.check_alive()
    machine.close_channel()
    trial.device.resize(machine, 4096)
    machine.check_alive()


@ring_case("report-time", clauses=("F-report-time",), edges=(151,))
def report_time(trial: Trial) -> None:
    """A report of 128 MiB that was touched is back within a second."""
    machine = trial.machine()
    given = [(DATA_AT + number * BLOCK, BLOCK) for number in range(32)]
    for one in given:
        machine.memory.touch(*one)
    begin = time.monotonic()
    machine.report(*given)
    seconds = time.monotonic() - begin
    if seconds > SLOW:
        raise Found(
            f"{32 * BLOCK // MIB} MiB took {seconds:.1f} s, for which they are missing to the guest", "F-report-time"
        )
