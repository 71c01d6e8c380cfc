"""Rings that are stopped, disabled, moved and started again while buffers are on their way: each comes back once."""

import os
import socket
import time
from typing import Final

from protocol.errors import VhostUserError
from protocol.memory import PAGE_SIZE
from protocol.packed_ring import FRESH_BASE
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_payloads import VringFile, VringState
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature
from scripts.check.device.cases.reporting import BLOCK, judge_discard, pages_of
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import WANTED
from scripts.check.machine.memory_file import DATA_AT, MIB, as_ranges
from scripts.check.machine.vhost_user_device import VhostUserMachine
from scripts.check.verdict import Found, require, skip

POISON_VAL_AT: Final = 12

_AT_ONCE: Final = (
    ProtocolFeature.INFLIGHT_SHMFD,
    ProtocolFeature.GET_VRING_BASE_INFLIGHT,
    ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN,
)
"""What a stop that does not wait for reports in hand needs."""

SETTLED: Final = 0.1
"""Seconds without a used buffer after which a session whose front-end has gone is over."""

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
        require(base == 5, f"after 5 buffers the ring stops at base {base} instead of 5", "V-36")
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
    _check_base(queue, base)
    late = at_stop - machine.memory.present()
    require(not late, f"pages were discarded after the ring was stopped: {as_ranges(late)}", "V-36")
    machine.start(queue.index, base)
    came += [used.head for used in queue.collect(len(heads) - len(came))]
    require(sorted(came) == sorted(heads), f"of buffers {sorted(heads)} came back {sorted(came)}", "V-36")
    left = machine.memory.present() & pages_of(*given)
    require(left in (set(), pages_of(*given)), f"acknowledged and not discarded: {as_ranges(left)}", "V-36")


@ring_case("ring-stopped-without-draining", clauses=("V-36", "V-32"), edges=(85, 86), peers=("QEMU",), quick=True)
def stopped_without_draining(trial: Trial) -> None:
    """A stop that does not wait for reports in hand loses no buffer and repeats none; nothing is discarded after it."""
    machine = trial.vhost_user(run=False, also=feature_mask(*_AT_ONCE))
    if not all(map(machine.frontend.has, _AT_ONCE)):
        skip("the device does not offer GET_VRING_BASE_SKIP_DRAIN")
    machine.track_inflight()
    machine.run()
    queue = machine.reporting
    given = [(DATA_AT + number * BLOCK, BLOCK // 2) for number in range(24)]
    for one in given:
        machine.memory.touch(*one)
    heads = [queue.add((), machine.buffers(given[at : at + 8])) for at in range(0, len(given), 8)]
    queue.kick()
    base = machine.stop(queue.index, drain=False)
    at_stop = machine.memory.present()
    came = []
    while (used := queue.take_used()) is not None:
        came.append(used.head)
    require(queue.gives_nothing_back(0.03), "a buffer came back after the ring was stopped", "V-36")
    late = at_stop - machine.memory.present()
    require(not late, f"pages were discarded after the ring was stopped: {as_ranges(late)}", "V-36")
    machine.start(queue.index, base)
    came += [used.head for used in queue.collect(len(heads) - len(came))]
    require(sorted(came) == sorted(heads), f"of buffers {sorted(heads)} came back {sorted(came)}", "V-36")
    require(queue.gives_nothing_back(0.03), "more buffers came back than there were", "V-36")
    left = machine.memory.present() & pages_of(*given)
    require(left in (set(), pages_of(*given)), f"acknowledged and not discarded: {as_ranges(left)}", "V-36")


def _check_base(queue: DriverQueue, base: int) -> None:
    # What was taken came back, or is not taken: else it is lost when the ring goes on there.
    available, used = (base & 0xFFFF, base >> 16) if queue.layout.packed else (base, queue.split.used[1])
    require(
        available == used,
        f"the ring stops at base {base:#x}: the next available index is {available:#x}, and the used index {used:#x}",
        "V-36",
    )


@ring_case("reconnected-in-mid-report", clauses=("V-8", "V-32"), edges=(91,), peers=("QEMU",))
def reconnected(trial: Trial) -> None:
    """A front-end that loses its session in a report starts another at the used index: each buffer comes back once."""
    machine = trial.vhost_user()
    queue = machine.reporting
    given = [(DATA_AT + number * BLOCK, BLOCK // 2) for number in range(24)]
    for one in given:
        machine.memory.touch(*one)
    before = machine.memory.present()
    heads = [queue.driver.add((), machine.buffers([one])) for one in given]
    queue.kick()
    came = [used.head for used in queue.collect()]
    machine.disconnect()
    came += _late(queue)
    if came != heads[: len(came)]:
        skip("the device uses buffers out of order, so that the used index does not tell what is left")
    trial.vhost_user_device.reconnect(machine)
    queue.kick()
    came += [used.head for used in queue.collect(len(heads) - len(came))]
    require(sorted(came) == sorted(heads), f"of buffers {sorted(heads)} came back {sorted(came)}", "V-32")
    require(queue.gives_nothing_back(0.03), "more buffers came back than there were", "V-32")
    judge_discard(machine, before, pages_of(*given))


def _late(queue: DriverQueue) -> list[int]:
    # What a session whose front-end has gone still gives back. Only by its silence can it be seen to have ended.
    came: list[int] = []

    def take() -> bool:
        used = queue.take_used()
        came.extend([] if used is None else [used.head])
        return used is not None

    while becomes_true(take, SETTLED):
        pass
    return came


@SUITE.case("packed-base-zero", clauses=("V-32", "V-36", "M-safe"), edges=(68,), peers=("User Mode Linux",), quick=True)
def base_zero(trial: Trial) -> None:
    """Base 0 of a packed ring is the beginning of its second lap; for a fresh ring it is taken as fresh, or refused."""
    trial.packed = True
    machine = trial.vhost_user(size=8)
    queue = machine.reporting
    for number in range(queue.layout.size):
        machine.report((DATA_AT + number * PAGE_SIZE, PAGE_SIZE))
    base = machine.stop(queue.index)
    require(base == 0, f"after one lap a packed ring stops at base {base:#x} instead of 0", "V-36")
    machine.start(queue.index, base)
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    queue.offer((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
    queue.kick()
    require(
        becomes_true(lambda: queue.take_used() is not None),
        "a packed ring that goes on at base 0, where it was stopped after one lap, serves nothing",
        "V-32",
    )
    judge_discard(machine, before, {DATA_AT})
    _fresh_at_zero(trial)


def _fresh_at_zero(trial: Trial) -> None:
    machine = trial.vhost_user(size=8)
    queue = machine.reporting
    machine.stop(queue.index)
    try:
        machine.start(queue.index, 0)
    except VhostUserError:
        return  # it is no place of a fresh ring, whose wrap counters are 1
    machine.memory.touch(DATA_AT, 16 * PAGE_SIZE)
    before = machine.memory.present()
    queue.offer((), machine.buffers([(DATA_AT, PAGE_SIZE)]))
    queue.kick()
    back = becomes_true(lambda: queue.take_used() is not None, 0.3)
    lost = before - machine.memory.present()
    require(lost <= {DATA_AT}, f"pages that were not given are gone: {as_ranges(lost - {DATA_AT})}", "M-safe")
    if not back:
        raise Found(
            "a fresh packed ring at base 0, which User Mode Linux sends, is taken for one in its second lap, and "
            "serves nothing",
            "V-32",
        )


@ring_case(
    "poison-without-bit-30",
    clauses=("V-38", "BR-8"),
    edges=(26, 155),
    peers=("User Mode Linux",),
    quick=True,
)
def poison_without_bit_30(trial: Trial) -> None:
    """With PAGE_POISON a front-end that leaves bit 30 out of a second SET_FEATURES is served, protocol features too."""
    machine = trial.vhost_user(wanted=WANTED | feature_mask(BalloonFeature.PAGE_POISON), run=False)
    if not machine.has(BalloonFeature.PAGE_POISON):
        skip("the device does not offer PAGE_POISON")
    done = machine.send(FrontendRequest.SET_FEATURES, machine.features)
    require(done, f"a second SET_FEATURES {machine.features:#x}, without bit 30, is refused", "V-38")
    poison = b"\xaa" * 4
    machine.write_config(POISON_VAL_AT, poison)
    machine.set_memory()
    for index in machine.queues:
        _start_without_enable(machine, index)
    machine.connection.perform(machine.frontend.driver_ok())
    machine.memory.write(DATA_AT, poison * (PAGE_SIZE // 4))
    machine.report((DATA_AT, PAGE_SIZE))
    seen = machine.memory.read(DATA_AT, PAGE_SIZE)
    require(
        seen == poison * (PAGE_SIZE // 4),
        f"the page held the poison {poison.hex()} when it was reported and holds {seen[:4].hex()}... afterwards",
        "BR-8",
    )


def _start_without_enable(machine: VhostUserMachine, index: int) -> None:
    setup = machine.setup(index)
    base = FRESH_BASE if machine.queues[index].layout.packed else 0
    machine.connection.perform(machine.frontend.place_queue(index, setup))
    for request, payload, fd in (
        (FrontendRequest.SET_VRING_NUM, VringState(index, setup.size), None),
        (FrontendRequest.SET_VRING_BASE, VringState(index, base), None),
        (FrontendRequest.SET_VRING_CALL, VringFile(index, True), setup.call),
        (FrontendRequest.SET_VRING_KICK, VringFile(index, True), setup.kick),
    ):
        done = machine.send(request, payload, () if fd is None else (fd,))
        require(done, f"without bit 30 {request.name} of queue {index} is refused", "V-38")


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


@ring_case("call-full-socket", clauses=("V-43",), edges=(76,), quick=True)
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


@ring_case("call-closed-peer", clauses=("V-43",), edges=(77,), quick=True)
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
    """A report of 128 MiB that was touched is back within a second, once in three times: a busy machine delays some."""
    machine = trial.machine()
    given = [(DATA_AT + number * BLOCK, BLOCK) for number in range(32)]
    times: list[float] = []
    while len(times) < 3:
        for one in given:
            machine.memory.touch(*one)
        begin = time.monotonic()
        machine.report(*given)
        times.append(time.monotonic() - begin)
        if times[-1] <= SLOW:
            return
    raise Found(
        f"{32 * BLOCK // MIB} MiB took {min(times):.1f} s, for which they are missing to the guest", "F-report-time"
    )
