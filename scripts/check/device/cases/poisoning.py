"""PAGE_POISON: a page that was reported may hold the poison, or what it held, and nothing else."""

import struct
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature
from scripts.check.device.cases.reporting import judge_discard, pages_of
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.machine import WANTED, Machine
from scripts.check.machine.memory_file import DATA_AT
from scripts.check.verdict import Found, require, skip

POISON_VAL_AT: Final = 12
PATTERN: Final = 0xAAAA_AAAA


def poisoned(trial: Trial, value: int) -> Machine:
    """Bring the device up with PAGE_POISON and the poison ``value`` written before the queues are served."""
    machine = trial.machine(wanted=WANTED | feature_mask(BalloonFeature.PAGE_POISON), run=False)
    if not machine.has(BalloonFeature.PAGE_POISON):
        skip("the device does not offer PAGE_POISON")
    if not machine.has(BalloonFeature.PAGE_REPORTING):
        skip("the device does not offer PAGE_REPORTING")
    machine.write_config(POISON_VAL_AT, struct.pack("<I", value))
    machine.run()
    return machine


@ring_case("poison-kept", clauses=("BR-8", "BP-4"), edges=(127,), peers=("villain/L0036",), quick=True)
def kept(trial: Trial) -> None:
    """With a poison other than zero a reported page holds the poison after the acknowledgement."""
    machine = poisoned(trial, PATTERN)
    page = struct.pack("<I", PATTERN) * (PAGE_SIZE // 4)
    for number in range(16):
        machine.memory.write(DATA_AT + number * PAGE_SIZE, page)
    machine.report((DATA_AT, 16 * PAGE_SIZE))
    for number in range(16):
        seen = machine.memory.read(DATA_AT + number * PAGE_SIZE, PAGE_SIZE)
        require(
            seen == page,
            f"the page held the poison {PATTERN:#x} when it was reported and holds {seen[:8].hex()}... afterwards",
            "BR-8",
        )


@SUITE.case("poison-any-value", clauses=("BR-8",), edges=(127,), quick=False)
def any_value(trial: Trial) -> None:
    """A poison is other than zero whichever of its bits is set."""
    for value in (0x1, 0x100, 0x8000_0000, 0x1234_5678):
        machine = poisoned(trial, value)
        page = struct.pack("<I", value) * (PAGE_SIZE // 4)
        machine.memory.write(DATA_AT, page)
        machine.report((DATA_AT, PAGE_SIZE))
        seen = machine.memory.read(DATA_AT, PAGE_SIZE)
        require(seen == page, f"with the poison {value:#x} a page holds {seen[:4].hex()}... after its report", "BR-8")


@ring_case("poison-zero", clauses=("BR-8",), edges=(127,), quick=True)
def zero(trial: Trial) -> None:
    """With poison zero a reported page reads as zeros; it may be discarded."""
    machine = poisoned(trial, 0)
    machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
    machine.memory.write(DATA_AT, bytes(PAGE_SIZE))
    machine.report((DATA_AT, PAGE_SIZE))
    seen = machine.memory.read(DATA_AT, PAGE_SIZE)
    require(seen == bytes(PAGE_SIZE), f"a page of zeros holds {seen[:8].hex()}... after its report", "BR-8")
    require(not machine.memory.spoilt({DATA_AT + PAGE_SIZE}), "the next page changed", "M-safe")


@SUITE.case("poison-changed-while-running", clauses=("BP-3", "BR-8"), edges=(128,), quick=True)
def changed(trial: Trial) -> None:
    """A poison that the driver changes while it runs, which it must not, makes no page lose the first one."""
    machine = poisoned(trial, PATTERN)
    page = struct.pack("<I", PATTERN) * (PAGE_SIZE // 4)
    machine.memory.write(DATA_AT, page)
    machine.write_config(POISON_VAL_AT, bytes(4))
    machine.barrier()
    machine.report((DATA_AT, PAGE_SIZE))
    seen = machine.memory.read(DATA_AT, PAGE_SIZE)
    require(
        seen in (page, bytes(PAGE_SIZE)),
        f"the page held {page[:4].hex()}... and holds {seen[:8].hex()}... after its report",
        "BR-8",
    )


@SUITE.case("poison-not-negotiated", clauses=("BP-4", "M-safe"), quick=True)
def not_negotiated(trial: Trial) -> None:
    """A write to the poison of a driver that did not negotiate it changes nothing."""
    machine = trial.machine()
    machine.write_config(POISON_VAL_AT, struct.pack("<I", PATTERN))
    machine.barrier()
    machine.memory.touch(DATA_AT, 4 * PAGE_SIZE)
    before = machine.memory.present()
    machine.report((DATA_AT, PAGE_SIZE))
    judge_discard(machine, before, pages_of((DATA_AT, PAGE_SIZE)))


@SUITE.case("poison-forgotten", clauses=("G-10",), quick=True)
def forgotten(trial: Trial) -> None:
    """After a reset the poison is zero again: a driver that writes none must not find the last one's."""
    features = WANTED | feature_mask(BalloonFeature.PAGE_POISON)
    machine = trial.vhost_user(wanted=features, run=False)
    if not machine.has(BalloonFeature.PAGE_POISON):
        skip("the device does not offer PAGE_POISON")
    machine.write_config(POISON_VAL_AT, struct.pack("<I", PATTERN))
    machine.run()
    machine.memory.touch(DATA_AT, PAGE_SIZE)
    machine.report((DATA_AT, PAGE_SIZE))
    machine.reset()
    machine.bring_up_again()
    machine.inflate(DATA_AT)
    left = int.from_bytes(machine.read_config(POISON_VAL_AT, 4), "little")
    if left:
        raise Found(
            f"a driver that has begun after a reset finds the poison {left:#x}, which the last one wrote", "G-10"
        )
