"""Both halves of a virtqueue as two sleepers that wake each other: no kick and no interrupt may be lost."""

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

import guest.virtqueue.packed_virtqueue
import guest.virtqueue.split_virtqueue
import host.virtqueue.packed_virtqueue
import host.virtqueue.split_virtqueue
from guest.virtqueue.virtqueue import QueueFullError
from host.virtqueue.virtqueue import Chain
from protocol.errors import BalloonError
from scripts.check.model.ring_memory import AnyRingMemory, PackedRingMemory, RingMemory, halves

MODULES: Final = (
    guest.virtqueue.packed_virtqueue,
    guest.virtqueue.split_virtqueue,
    host.virtqueue.packed_virtqueue,
    host.virtqueue.split_virtqueue,
)

_NOTIFYING: Final = ("needs_notification", "enable_notification")

FENCES: Final = tuple(
    (module.__name__, method)
    for module in MODULES
    for method in (("needs_kick", "enable_interrupt") if "guest" in module.__name__ else _NOTIFYING)
)
"""Module and method of every full fence of both halves, which are those that the specification asks for."""


class LostWakeUpError(BalloonError):
    """Both sides sleep, and neither will wake the other."""


class Pair:
    """A driver that sends requests and sleeps while it waits, a device that sleeps when nothing is there.

    Both are step-by-step programs; they interleave between any two calls and, because it is there that wake-ups get
    lost, at each full fence inside a call. Each runs on a processor of its own, whose stores the other sees when they
    leave its buffer: at a fence, with a kick or an interrupt, before it sleeps, and now and then. A kick or an
    interrupt is an eventfd: a flag that waits to be read.
    """

    def __init__(
        self, memory: AnyRingMemory, *, event_idx: bool, in_order: bool, begin: int, requests: int, schedule: bytes
    ) -> None:
        memory.separate()
        self.memory = memory
        self.driver, self.device = halves(memory, event_idx=event_idx, in_order=in_order, begin=begin)
        self.requests = requests
        self.without_fence: tuple[str, str] | None = None
        """A module and a method whose fence is left out."""
        self.schedule = iter(schedule)
        self.kicked = self.interrupted = False
        self.kicks = self.interrupts = 0
        self.sent: list[int] = []
        self.served: list[int] = []
        self.collected: list[int] = []
        self.held: deque[Chain] = deque()
        self._programs = {"driver": self._drive(), "device": self._serve()}
        self._running: list[str] = []

    def _drive(self) -> Iterator[str]:
        while len(self.collected) < self.requests:
            for _ in range(1 + next(self.schedule, 0) % 4):
                number = len(self.sent)
                if number == self.requests:
                    break
                try:
                    self.driver.add([(number, 1)] * (1 + number % 2), [(number, 2)] * (number % 3))
                except QueueFullError:
                    break
                self.sent.append(number)
                yield "awake"
            if self.driver.needs_kick():
                yield "awake"
                self.kicked = True
                self.kicks += 1
            yield "awake"
            while (used := self.driver.get_used()) is not None:
                self.collected.append(used.length)
                yield "awake"
            yield "awake"
            if self.driver.outstanding == 0 or self.driver.enable_interrupt():
                continue
            yield "awake"
            while not self.interrupted:
                yield "asleep"
            self.interrupted = False

    def _serve(self) -> Iterator[str]:
        while True:
            chain = self.device.pop()
            yield "awake"
            if chain is not None:
                self.served.append(chain.readable[0][0])
                self.held.append(chain)
                if next(self.schedule, 0) % 3 == 0:
                    continue  # hold more than one chain
            while self.held:
                done = self.held.popleft()
                self.device.add_used(done.head, done.readable[0][0])
                yield "awake"
                if self.device.needs_notification():
                    yield "awake"
                    self.interrupted = True
                    self.interrupts += 1
                yield "awake"
            if chain is None and not self.device.enable_notification():
                yield "awake"
                while not self.kicked:
                    yield "asleep"
                self.kicked = False

    def _step(self, who: str) -> str:
        flags = self.kicked, self.interrupted
        self._running.append(who)
        state = next(self._programs[who], "finished")
        self._running.pop()
        if state == "asleep" or flags != (self.kicked, self.interrupted) or next(self.schedule, 0) % 4 == 0:
            self.memory.flush(who)
        return state

    def at_fence(self, module: str) -> None:
        """Empty the caller's store buffer, and let the other side run for some steps in the middle of a call; not from
        within such steps again."""
        if not self._running:
            return
        caller = self._running[-1]
        if (module, sys._getframe(1).f_code.co_name) != self.without_fence:
            self.memory.flush(caller)
        if len(self._running) == 1:
            for _ in range(next(self.schedule, 0) % 8):
                self._step("device" if caller == "driver" else "driver")

    def run(self) -> None:
        """Run until the driver has everything back.

        Raises:
            LostWakeUpError: both sides sleep, or nothing more happens.
        """
        with ExitStack() as stack:
            for module in MODULES:
                stack.callback(setattr, module, "full_fence", module.full_fence)
                setattr(module, "full_fence", partial(self.at_fence, module.__name__))  # noqa: B010 - it is imported there
            for choice in self.schedule:
                self._step("driver" if choice & 1 else "device")
            for _ in range(60 * self.requests + 200):
                states = {self._step("driver"), self._step("device")}
                if "finished" in states:
                    return
                if states == {"asleep"} and not self.kicked and not self.interrupted:
                    raise LostWakeUpError("both sides sleep for ever")
        raise LostWakeUpError("no progress")


def run_without_fence(module: str, method: str, schedules: int = 400) -> None:
    """Run pairs over as many random schedules, always the same ones, with the fence of a method left out.

    Raises:
        LostWakeUpError: a schedule was found that loses a wake-up.
    """
    memory_of = PackedRingMemory if "packed" in module else RingMemory
    generator = random.Random(2)
    for _ in range(schedules):
        schedule = generator.randbytes(200)
        pair = Pair(memory_of(4), event_idx=True, in_order=False, begin=0, requests=30, schedule=schedule)
        pair.without_fence = module, method
        pair.run()
