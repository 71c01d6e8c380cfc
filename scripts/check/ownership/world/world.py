"""A guest and its device in one process and in virtual time: every actor stops wherever another may run.

A world makes no choice of its own. ``choices`` says what each actor could do next, and :meth:`World.take` has one of
them do it. So a list of steps is all there is to a run, and the same list gives the same run.
"""

from collections.abc import Callable
from typing import Final

from protocol.errors import VirtqueueError
from protocol.virtio_balloon import BalloonQueue
from scripts.check.ownership.page_owners import PageOwners, Violation
from scripts.check.ownership.page_state import PageEvent, Race
from scripts.check.ownership.pages import Pages, amount, neighbours_joined
from scripts.check.ownership.world.actor import Point, Program, Step
from scripts.check.ownership.world.device_side import DeviceSide
from scripts.check.ownership.world.guest_side import TOTAL_PAGES, GuestSide
from scripts.check.ownership.world.shared_queue import QUEUES, SharedMemory, SharedQueue
from scripts.check.ownership.world.world_options import WorldOptions

TICK: Final = 0.001
"""Seconds of virtual time that a step takes."""


def _word(queue: BalloonQueue) -> str:
    return {BalloonQueue.FREE_PAGE: "hinting"}.get(queue, queue.value)


ACTIONS: Final = {
    "cpu1": frozenset({"allocate", "touch", "free", "exhaust"}),
    "cpu2": frozenset({"allocate", "touch", "free", "exhaust"}),
    "reporter": frozenset({"begin", "report", "collect", "return"}),
    "balloon": frozenset({"adjust", "tell", "collect", "told"}),
    "hinting": frozenset({"see", "hint", "collect"}),
    "operator": frozenset({"balloon", "start-hints", "stop-hints", "end-hints"}),
    "front-end": frozenset({"pause", "resume", "reset", "detach", "attach"}),
    **{f"device-{_word(queue)}": frozenset({"take", "discard", "put-back", "acknowledge"}) for queue in QUEUES},
}
"""What each actor does."""

CHOOSING: Final = ("cpu1", "cpu2", "operator")
"""Actors that are told which pages a step is about."""

_BROKEN: Final = Race("ring-broken", "S-22")
"""The driver finds a used entry that it cannot understand."""

_GUEST: Final = ("reporter", "balloon", "hinting")
"""Actors that begin anew with each device."""


class World:
    """A guest with two processors in use and an attached device."""

    def __init__(self, options: WorldOptions) -> None:
        self.options = options
        self.owners = PageOwners(TOTAL_PAGES, must_tell_host=options.must_tell_host == "on")
        memory = SharedMemory()
        packed = options.ring == "packed"
        self.queues = {queue: SharedQueue(memory, queue, self.owners, packed=packed) for queue in QUEUES}
        self.device = DeviceSide(options, self.owners, TOTAL_PAGES, memory, self.queues)
        self.guest = GuestSide(options, self.owners, memory, self.queues, self.device.balloon)
        self._programs: dict[str, Callable[[], Program]] = {
            "cpu1": lambda: self.guest.run_cpu(0),
            "cpu2": lambda: self.guest.run_cpu(1),
            "reporter": lambda: self.guest.run_reporter(),
            "balloon": lambda: self.guest.run_balloon(),
            "hinting": lambda: self.guest.run_hinting(),
            "operator": lambda: self.device.run_operator(self.guest.set_target),
            "front-end": self._run_front_end,
        }
        for which, queue in self.queues.items():
            self._programs[f"device-{_word(which)}"] = lambda queue=queue: self.device.run_worker(queue)  # type: ignore[misc]
        self._running: dict[str, Program] = {}
        self._points: dict[str, tuple[Point, ...]] = {}
        self.steps = 0
        """Steps that were taken."""
        self.last = Step("", "")

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_error: object) -> None:
        self.owners.close()
        for program in self._running.values():
            program.close()
        self.guest.reporter.unregister()

    def begin(self) -> None:
        """Attach the device and bring every actor to its first point. Faults are put in before."""
        self.guest.attach()
        for name in self._programs:
            self._start(name)

    def _start(self, name: str) -> None:
        self._running[name] = program = self._programs[name]()
        self._points[name] = tuple(next(program))

    @property
    def now(self) -> float:
        """Virtual time in seconds."""
        return self.guest.now

    # --- Steps ---

    def choices(self) -> list[tuple[str, list[Point]]]:
        """Return the actors that can go on, each with what it may do next."""
        found = [(name, [point for point in points if point.ready()]) for name, points in self._points.items()]
        return [choice for choice in found if choice[1]]

    def allows(self, step: Step) -> bool:
        """Return whether this step can be taken now."""
        return any(
            point.action == step.action and point.ready() and point.fits(step.pages)
            for point in self._points.get(step.actor, ())
        )

    def take(self, step: Step) -> None:
        """Take a step that is allowed; ``last`` is then that step with the pages that it was about.

        Raises:
            Violation: a race. The world is not to be used further.
        """
        self.steps += 1
        self.guest.now += TICK
        history = self.owners.history
        before = len(history)
        self.guest.block = None
        try:
            self._points[step.actor] = tuple(self._running[step.actor].send(step))
            if len(history) != before:
                self.owners.check_flags(self.guest.allocator.reported_blocks())
        except Violation as violation:
            self.last = step._replace(pages=self._told(step) or (violation.pages,))
            raise
        except VirtqueueError as error:
            self.last = step
            raise self._ring_broken(str(error)) from error
        self.last = step._replace(pages=self._told(step) or neighbours_joined(pages for _, pages in history[before:]))

    def _ring_broken(self, text: str) -> Violation:
        return Violation(_BROKEN, PageEvent.ACKNOWLEDGE, Pages(0, 1), self.owners.state(0), (), text=text)

    def _told(self, step: Step) -> tuple[Pages, ...]:
        # The pages of a step whose actor was told which; nothing for any other.
        if step.actor not in CHOOSING:
            return ()
        if step.actor == "operator":
            return step.pages if step.action == "balloon" else ()
        if self.guest.block is not None:
            return (self.guest.block,)
        return (amount(step.pages[0].length),) if step.action == "allocate" else ()

    # --- The front-end ---

    def _run_front_end(self) -> Program:
        points = Point("pause"), Point("reset")
        while True:
            step = yield points
            self.device.request_stop()
            if step.action == "pause":
                yield (Point("resume", self.device.are_stopped),)
                self.device.resume()
                continue
            yield (Point("detach", self.device.are_stopped),)
            self.device.reset()
            self.detach_guest()
            yield (Point("attach"),)
            self.device.attach()
            self.guest.attach()
            for name in _GUEST:
                self._start(name)

    def detach_guest(self) -> None:
        """Have the guest give up its device; its tasks do nothing until there is another."""
        for name in _GUEST:
            self._running.pop(name).close()
            self._points[name] = ()
        self.guest.detach()
