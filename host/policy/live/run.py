"""The run of a policy on living machines: look at all daemons, decide, act; again at every interval until it is told to
stop. At the end the balloons are emptied, unless they are to be left."""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from host.policy.contained import ContainedPolicy, DecisionRecord
from host.policy.live.daemon import Daemon
from host.policy.live.host_memory import HostMemory
from host.policy.live.machines import Machines
from host.policy.observation import HostView, Observation
from host.policy.policy import Action, Policy, SetBalloon
from protocol.errors import BalloonError
from protocol.process.events import EventLog
from protocol.units import format_size

END_SECONDS: Final = 3.0
"""Time that the daemons have at the end to take their last targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What is run on whom. ``print_line`` takes a line about each decision, ``say`` what else people should know."""

    policy: Policy
    controls: Sequence[Path]
    memory: HostMemory
    interval: float
    print_line: Callable[[str], None]
    say: Callable[[str], None]
    events: EventLog
    once: bool = False
    dry_run: bool = False
    leave: bool = False


@dataclass(slots=True)
class _Run:
    options: RunOptions
    daemons: list[Daemon] = field(default_factory=list)
    machines: Machines = field(default_factory=Machines)
    line: str = ""

    async def decide(self, policy: ContainedPolicy) -> None:
        """Look, decide and act once."""
        looks = await asyncio.gather(*(daemon.look() for daemon in self.daemons))
        views = {key: view for found, _ in looks for key, view in found.items()}
        self.machines.keep(set(views))
        used = self.options.memory.used()
        if used is None:
            others = sum(held for _, held in looks)
            used = others + sum(
                view.memory_bytes - view.balloon_bytes if view.host_backed_bytes is None else view.host_backed_bytes
                for view in views.values()
            )
        host = HostView(
            budget_bytes=self.options.memory.budget, used_bytes=used, pressure=self.options.memory.pressure()
        )
        vms = {view.name: view for view in views.values()}
        seen = Observation(now=time.monotonic(), host=host, vms=vms)
        record = await _aside(lambda: policy.decide(seen))
        self._tell(record)
        if not self.options.dry_run:
            for action in record.actions:
                for daemon in self.daemons:
                    if daemon.has(action.vm):
                        await daemon.act(action)

    def _tell(self, record: DecisionRecord) -> None:
        self.options.events.emit("decision", **record.as_dict(), dry_run=self.options.dry_run)
        what = ", ".join(_shown(action) for action in record.actions) or "no action"
        line = f"{record.policy}: {record.reason} -> {what}"
        # The first one, and then each that does something, unless a policy that fails repeats itself.
        if not self.line or (record.actions and line != self.line):
            self.options.print_line(line)
            self.line = line


async def _aside(decide: Callable[[], DecisionRecord]) -> DecisionRecord:
    # On a thread that nobody waits for: a policy that never answers must not keep a signal from ending the program.
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[DecisionRecord] = loop.create_future()

    def settle(record: DecisionRecord | None, error: BaseException | None) -> None:
        if answer.done():  # given up
            return
        if record is not None:
            answer.set_result(record)
        elif error is not None:
            answer.set_exception(error)

    def work() -> None:
        record, fault = None, None
        try:
            record = decide()
        except Exception as error:
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, record, fault)

    threading.Thread(target=work, daemon=True, name="policy").start()
    return await answer


def _shown(action: Action) -> str:
    if isinstance(action, SetBalloon):
        return f"{action.vm}: balloon {format_size(action.size)}"
    return f"{action.vm}: reclaim" if action.size is None else f"{action.vm}: reclaim {format_size(action.size)}"


async def run(options: RunOptions) -> int:
    """Apply the policy until SIGTERM or SIGINT, or once. Return the exit status: 0, or 130 after SIGINT.

    Raises:
        BalloonError: once, and no daemon answered.
    """
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        if not stopped.done():
            stopped.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    state = _Run(options)
    state.daemons = [Daemon(path, state.machines, options.say, time.monotonic) for path in options.controls]
    deciding = loop.create_task(_decide_until_stopped(state, stopped))
    try:
        ends: set[asyncio.Future[Any]] = {deciding, stopped}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if deciding.done():
            deciding.result()  # raises what ended it
    finally:
        deciding.cancel()
        await asyncio.gather(deciding, return_exceptions=True)
        await _end(state)
    return 130 if stopped.done() and stopped.result() == signal.SIGINT else 0


async def _decide_until_stopped(state: _Run, stopped: "asyncio.Future[int]") -> None:
    options = state.options
    policy = ContainedPolicy(options.policy, options.say)
    due = time.monotonic()
    while not stopped.done():
        await state.decide(policy)
        if options.once:
            failures = [daemon.failure for daemon in state.daemons if daemon.failure is not None]
            if len(failures) == len(state.daemons):
                raise BalloonError(f"no daemon answered: {failures[0]}")
            for daemon in state.daemons:
                await daemon.reclaimed()
            return
        now = time.monotonic()
        due = max(due + options.interval, now)  # decisions that a delay left out are not made up for
        await asyncio.sleep(due - now)


async def _end(state: _Run) -> None:
    # What was decided once is to stay; what a policy held while it ran is given back.
    options = state.options
    if not (options.leave or options.once or options.dry_run):
        await asyncio.wait([asyncio.create_task(daemon.give_back()) for daemon in state.daemons], timeout=END_SECONDS)
    for daemon in state.daemons:
        await daemon.close()
