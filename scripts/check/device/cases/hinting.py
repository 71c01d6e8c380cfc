"""Free page hinting: no page that is in use may go, in a round of hints and outside of one.

A round is begun by the one who migrates or suspends the machine, which a driver cannot: QEMU is asked to migrate, and
our daemon to reclaim.
"""

import struct
from contextlib import suppress
from typing import Final

from protocol.balloon_config import BalloonConfig
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from scripts.check.device.cases.reporting import LATE
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import becomes_true, stays_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import Machine
from scripts.check.machine.memory_file import DATA_AT, MIB, as_ranges
from scripts.check.verdict import Failed, Found, require, skip

STOP: Final = 0
DONE: Final = 1


def current_id(machine: Machine) -> int:
    """Return the command id that the device shows."""
    if not machine.has(BalloonFeature.FREE_PAGE_HINT):
        skip("the device does not offer FREE_PAGE_HINT")
    return BalloonConfig.parse(machine.read_config(0, 12)).free_page_hint_cmd_id


def hint(machine: Machine, command: int, *, back: bool = True) -> None:
    """Send a command id and then four blocks as hints, and collect both."""
    queue = machine.queue(BalloonQueue.FREE_PAGE)
    queue.offer_data(struct.pack("<I", command))
    queue.offer((), machine.buffers((DATA_AT + n * MIB, 64 * PAGE_SIZE) for n in range(4)))
    if back:
        queue.collect(2)


@ring_case("hint-id-shown", clauses=("BH-11", "BH-16"), quick=True)
def id_shown(trial: Trial) -> None:
    """Before any round the device shows the command id STOP (0) or DONE (1)."""
    machine = trial.machine()
    seen = current_id(machine)
    if seen not in (STOP, DONE):
        raise Found(f"the command id is {seen} although no round was begun", "BH-11")


@ring_case(
    "hint-without-round",
    clauses=("BH-13", "BH-15"),
    edges=(135,),
    peers=(
        "firecracker/hinting_no_cmd_set",
        "firecracker/hinting_invalid_cmd",
        "firecracker/hinting_stale_inflight_requests",
    ),
    quick=True,
)
def without_round(trial: Trial) -> None:
    """Hints under an id that the device does not show are ignored: the pages stay as they are."""
    machine = trial.machine()
    current_id(machine)
    machine.memory.touch(DATA_AT, 5 * MIB)
    before = machine.memory.present()
    for command in (0x1234, 2, 0xFFFF_FFFF, 0x100, 0x101, 0x1_0000, 0x1_0001, 0x8000_0000):
        hint(machine, command)
    machine.check_gone(before, set(), "BH-13")


@SUITE.case("hint-of-another-round", clauses=("BH-13", "BH-15"), edges=(135,))
def of_another_round(trial: Trial) -> None:
    """In a round only hints under its own id may go: one that differs in any of its 32 bits is another round's."""
    machine = trial.machine()
    current_id(machine)
    machine.memory.touch(DATA_AT, 5 * MIB)
    before = machine.memory.present()
    queue = machine.queue(BalloonQueue.FREE_PAGE)
    with trial.device.hint_round(machine):
        command = _id_of_round(machine)
        try:
            for bit in range(32):
                if command ^ 1 << bit not in (STOP, DONE):
                    hint(machine, command ^ 1 << bit)
                    machine.check_gone(before, set(), "BH-13")
        finally:
            for last in (command, STOP):  # which ends the round
                queue.offer_data(struct.pack("<I", last))
                queue.collect()
    machine.check_gone(before, set(), "BH-13")


@ring_case(
    "hint-after-stop",
    clauses=("BH-13", "BH-15"),
    edges=(135,),
    peers=("firecracker/hinting_stale_post_stop", "villain/L0044"),
    quick=True,
)
def after_stop(trial: Trial) -> None:
    """Hints after STOP and after DONE take no page."""
    machine = trial.machine()
    current_id(machine)
    machine.memory.touch(DATA_AT, 5 * MIB)
    before = machine.memory.present()
    for command in (STOP, DONE):
        hint(machine, command)
    machine.check_gone(before, set(), "BH-15")


@SUITE.case("hint-without-id", clauses=("BH-13",), edges=(135,), quick=True)
def without_id(trial: Trial) -> None:
    """Pages before any command id take no page either."""
    machine = trial.machine()
    current_id(machine)
    machine.memory.touch(DATA_AT, MIB)
    before = machine.memory.present()
    queue = machine.queue(BalloonQueue.FREE_PAGE)
    queue.offer((), machine.buffers([(DATA_AT, MIB)]))
    queue.collect()
    machine.check_gone(before, set(), "BH-13")


@SUITE.case(
    "hint-odd-command",
    clauses=("BH-1",),
    peers=("firecracker/hinting_misaligned_value",),
    quick=True,
)
def odd_command(trial: Trial) -> None:
    """A command of 1, 3, 5 or 64 bytes does no harm."""
    machine = trial.machine()
    current_id(machine)
    queue = machine.queue(BalloonQueue.FREE_PAGE)
    for length in (1, 3, 5, 64):
        queue.offer_data(bytes(range(length)))
    machine.barrier()
    queue.gives_nothing_back(0.02)
    machine.check_survives()


@SUITE.case("hint-id-is-the-devices", clauses=("BH-12", "F-config-write"))
def id_is_the_devices(trial: Trial) -> None:
    """A driver that writes the command id does not begin a round with it."""
    machine = trial.machine()
    current_id(machine)
    machine.memory.touch(DATA_AT, 5 * MIB)
    before = machine.memory.present()
    machine.write_config(8, struct.pack("<I", 7))
    machine.barrier()
    hint(machine, 7, back=False)
    with suppress(Failed):  # a device may keep what it did not ask for
        machine.queue(BalloonQueue.FREE_PAGE).collect(2, 0.5)
    machine.barrier()
    lost = before - machine.memory.present()
    require(not lost, f"a driver began a round by writing the command id, and {len(lost)} pages are gone", "BH-12")


@ring_case(
    "hint-round",
    clauses=("BH-13", "BH-15", "BH-16"),
    edges=(135,),
    peers=("firecracker/hinting_normal_path", "villain/L0035"),
)
def hint_round(trial: Trial) -> None:
    """In a round the pages hinted under its id may go, and no other; after it no hinted page changes any more."""
    machine = trial.machine()
    current_id(machine)
    for _ in range(2):
        machine.memory.touch(DATA_AT, 8 * MIB)
        with trial.device.hint_round(machine):
            _hint_and_look(machine, _id_of_round(machine))
        _check_ended(machine)
        machine.memory.touch(DATA_AT, 8 * MIB)
        machine.barrier()
        stays_true(lambda: not machine.memory.spoilt(), LATE)
        lost = machine.memory.spoilt()
        require(not lost, f"pages changed after the round had ended: {as_ranges(lost)}", "BH-15")


@SUITE.case("hint-round-unanswered", clauses=("BH-11", "BH-12"), edges=(135,), quick=False)
def unanswered(trial: Trial) -> None:
    """A round that the driver does not answer ends without it, and its id is not used again: it has not sent STOP."""
    machine = trial.machine()
    current_id(machine)
    ids: list[int] = []
    for _ in range(2):
        with trial.device.hint_round(machine):
            ids.append(_id_of_round(machine))
            for command in (ids[-1], STOP) if len(ids) == 2 else ():
                machine.queue(BalloonQueue.FREE_PAGE).offer_data(struct.pack("<I", command))
                machine.queue(BalloonQueue.FREE_PAGE).collect()
        _check_ended(machine)
    require(
        ids[0] != ids[1],
        f"two rounds have the command id {ids[0]}, and the driver has not sent STOP between them",
        "BH-12",
    )


def _id_of_round(machine: Machine) -> int:
    if not becomes_true(lambda: current_id(machine) not in (STOP, DONE)):
        raise Found(f"a round was begun, and the command id is {current_id(machine)} still", "BH-11")
    return current_id(machine)


def _check_ended(machine: Machine) -> None:
    require(
        becomes_true(lambda: current_id(machine) in (STOP, DONE)),
        f"the round has ended, and the command id is {current_id(machine)} still",
        "BH-16",
    )


def _hint_and_look(machine: Machine, command: int) -> None:
    queue = machine.queue(BalloonQueue.FREE_PAGE)
    other = command + 1 if command < 0xFFFF_FFFF else 2
    before = machine.memory.present()
    _hint(queue, machine, other, DATA_AT)
    machine.check_gone(before, set(), "BH-13")
    given = {DATA_AT + 4 * MIB + n * PAGE_SIZE for n in range(256)}
    _hint(queue, machine, command, DATA_AT + 4 * MIB)
    lost = before - machine.memory.present()
    require(lost <= given, f"pages that were not hinted are gone: {as_ranges(lost - given)}", "BH-13", "M-safe")
    if lost:
        machine.check_gone(before, given, "BH-13")
    queue.offer_data(struct.pack("<I", STOP))
    queue.collect()


def _hint(queue: DriverQueue, machine: Machine, command: int, offset: int) -> None:
    # A command id and a MiB of memory under it.
    queue.offer_data(struct.pack("<I", command))
    queue.offer((), machine.buffers([(offset, MIB)]))
    queue.collect(2)
