"""Free page hinting outside of a round: no page that is in use may go.

A round is begun by the one who migrates or suspends the machine, which a driver cannot. What can be judged from the
driver's side alone is what a device must do with hints that it did not ask for; a round needs a way to ask the device.
"""

import struct
from typing import Final

from protocol.balloon_config import BalloonConfig
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.machine import Machine
from scripts.check.machine.memory_file import DATA_AT, MIB
from scripts.check.verdict import Failed, require, skip

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
        raise Failed(f"the command id is {seen} although no round was begun", "BH-11")


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
    with trial.device.hinting_round(machine) as command:
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
    machine.barrier()
    machine.queue(BalloonQueue.FREE_PAGE).gives_nothing_back(0.02)
    lost = before - machine.memory.present()
    require(not lost, f"a driver began a round by writing the command id, and {len(lost)} pages are gone", "BH-12")
