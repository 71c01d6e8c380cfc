"""The size that a balloon is asked to have: shown as it was asked for, kept over a pause and a reset, and reachable.

The size is the host's to set, by a command that each target has in its own way: without it the cases are NOT EXERCISED.
"""

import contextlib
import random
import struct
from typing import Final

from host.qmp.qmp_client import CommandError
from protocol.balloon_config import BalloonConfig
from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from scripts.check.device.cases.configuration import ACTUAL_AT
from scripts.check.device.trial import SUITE, Trial, ring_case
from scripts.check.machine.deadline import becomes_true
from scripts.check.machine.machine import Machine
from scripts.check.machine.memory_file import DATA_AT, as_ranges
from scripts.check.verdict import Failed, Found, require

PFNS_OF_A_MESSAGE: Final = 256
LARGEST: Final = 4096
"""Pages of the largest balloon that a case fills."""

TARGETS: Final = 40


def shown(machine: Machine) -> int:
    """Return num_pages."""
    return BalloonConfig.parse(machine.read_config(0, 8)).num_pages


def ask(trial: Trial, machine: Machine, pages: int) -> None:
    """Ask for a balloon of ``pages`` and wait until the driver sees that.

    Raises:
        Found: it does not.
    """
    trial.device.resize(machine, pages)
    if not becomes_true(lambda: shown(machine) == pages):
        raise Found(f"a balloon of {pages} pages was asked for, and num_pages is {shown(machine)}", "BI-1")


class Balloon:
    """A driver's balloon: its pages are the first of the memory from ``DATA_AT`` on."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.pages = 0
        machine.memory.touch(DATA_AT, (LARGEST + 1) * PAGE_SIZE)

    def follow(self, pages: int) -> None:
        """Make the balloon ``pages`` large, as Linux does, and use the pages that come out of it.

        Raises:
            Failed: a page that is not in the balloon is gone.
            Found: pages that are in it are not.
        """
        old = self.pages
        for start in range(min(old, pages), max(old, pages), PFNS_OF_A_MESSAGE):
            part = range(start, min(start + PFNS_OF_A_MESSAGE, max(old, pages)))
            offsets = [DATA_AT + PAGE_SIZE * number for number in part]
            self.machine.inflate(*offsets) if pages > old else self.machine.deflate(*offsets)
        if pages < old:
            self.machine.memory.touch(DATA_AT + PAGE_SIZE * pages, PAGE_SIZE * (old - pages))
        self.pages = pages
        self.machine.write_config(ACTUAL_AT, struct.pack("<I", pages))
        self.machine.barrier()
        self._look()

    def _look(self) -> None:
        border = DATA_AT + PAGE_SIZE * self.pages
        there = self.machine.memory.present()
        outside = set(range(border, DATA_AT + PAGE_SIZE * (LARGEST + 1), PAGE_SIZE))
        lost = outside - there
        require(not lost, f"of pages outside of a balloon of {self.pages} are gone: {as_ranges(lost)}", "M-safe")
        if kept := {at for at in there if at < border}:
            raise Found(f"{as_ranges(kept)} are in the balloon and still there", "F-discard")


@ring_case("target-many", clauses=("BI-1", "BI-11", "M-safe"), peers=("tp-qemu/balloon_stress",))
def many(trial: Trial) -> None:
    """Many sizes, one after another, are each shown, and each can be reached."""
    machine = trial.machine()
    trial.device.resize(machine, 1)
    balloon = Balloon(machine)
    sizes = random.Random(7)
    for pages in [*(sizes.randint(0, LARGEST) for _ in range(TARGETS)), LARGEST, 0]:
        ask(trial, machine, pages)
        balloon.follow(pages)
    machine.check_survives()


@SUITE.case("target-small-steps", clauses=("BI-1", "BI-11"), peers=("tp-qemu/balloon_minimum",), quick=False)
def small_steps(trial: Trial) -> None:
    """A page more at a time, and then the smallest machine that can be asked for, end neither device nor driver."""
    machine = trial.machine()
    trial.device.resize(machine, 1)
    balloon = Balloon(machine)
    for pages in [*range(1, 33), *range(31, -1, -1)]:
        ask(trial, machine, pages)
        balloon.follow(pages)
    machine.memory.discard(DATA_AT, (LARGEST + 1) * PAGE_SIZE)
    whole = machine.memory.size // PAGE_SIZE
    with contextlib.suppress(CommandError):  # a device may leave its machine a least size
        trial.device.resize(machine, whole - 1)
    machine.barrier()
    most = shown(machine)
    if most >= whole:
        raise Found(f"of {whole} pages the balloon is to have {most}", "BI-1")
    machine.check_alive()


@SUITE.case(
    "target-beyond-memory",
    clauses=("BI-1",),
    peers=("tp-qemu/balloon_illegal", "public/firecracker-2271"),
    quick=True,
)
def beyond_memory(trial: Trial) -> None:
    """A balloon larger than the memory, and a machine larger than it, are refused or bounded: no driver sees them."""
    machine = trial.machine()
    ask(trial, machine, 16)
    whole = machine.memory.size // PAGE_SIZE
    for pages in (whole, whole + 1, whole + 4096, 1 << 32, -1, -4096, -(1 << 40)):
        try:
            trial.device.resize(machine, pages)
        except CommandError:
            continue
        machine.barrier()
        seen = shown(machine)
        if seen >= whole:
            raise Found(
                f"a balloon of {pages} pages was asked for in a machine of {whole}, and num_pages is {seen}: no driver "
                "can reach it",
                "BI-1",
            )
    ask(trial, machine, 16)
    machine.check_alive()


@ring_case("target-while-paused", clauses=("BI-1", "G-3"), peers=("public/cloud-hypervisor-7850",), quick=True)
def while_paused(trial: Trial) -> None:
    """A size that is asked for while the machine is stopped is told and shown after it has gone on, and reached."""
    machine = trial.machine()
    ask(trial, machine, 64)
    balloon = Balloon(machine)
    balloon.follow(64)
    require(becomes_true(machine.config_changed), "the device told of no change of its configuration", "G-3")
    trial.device.pause(machine)
    trial.device.resize(machine, 512)
    trial.device.go_on(machine)
    told = becomes_true(machine.config_changed)
    seen = shown(machine)
    if seen != 512:
        raise Found(f"a balloon of 512 pages was asked for in a pause, and num_pages is {seen} after it", "BI-1")
    require(told, "num_pages changed in a pause, and the device does not tell of it after the pause", "G-3")
    balloon.follow(512)
    machine.check_survives()


@SUITE.case("target-after-reset", clauses=("BI-1", "G-10"), peers=("firecracker/device_reset",), quick=True)
def after_reset(trial: Trial) -> None:
    """A driver that leaves and comes back finds the size that was asked for before."""
    machine = trial.machine()
    ask(trial, machine, 512)
    for turn in range(3):
        machine.begin_again()
        seen = shown(machine)
        if seen != 512:
            raise Found(f"a balloon of 512 pages was asked for, and after reset {turn + 1} num_pages is {seen}", "BI-1")
        machine.check_alive()


@ring_case("features-again", clauses=("G-9", "G-10"), edges=(88,), quick=True)
def features_again(trial: Trial) -> None:
    """Features that were accepted once are accepted after every reset, and the device serves from the beginning."""
    machine = trial.machine()
    machine.check_alive()
    for turn in range(4):
        try:
            machine.begin_again()
        except (BalloonError, Failed) as error:
            raise Found(
                f"features {machine.features:#x} were accepted once, and are not after reset {turn + 1}: {error}", "G-9"
            ) from error
        machine.check_alive()
