"""One daemon and its virtual machines: looks at them, and carries out what was decided."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from host.policy.live.daemon_client import DaemonClient, DaemonLostError
from host.policy.live.machines import Key, Machines, Statistics
from host.policy.observation import VmView
from host.policy.policy import Action, SetBalloon
from host.qmp.qmp_client import CommandError
from protocol.errors import BalloonError

LOOK_SECONDS: Final = 5.0
"""Time that a daemon has to list its machines, and to take a target."""

STATISTICS_SECONDS: Final = 1.5
"""Time that a guest has for its statistics. One that does not answer is not asked for a while."""

SILENCE_SECONDS: Final = 30.0


class Daemon:
    """The daemon whose control socket is at ``path``. ``say`` takes lines for people; ``now`` returns seconds.

    It may go away and come back at any time: that is said once each, and its machines are missing meanwhile.
    """

    def __init__(self, path: Path, machines: Machines, say: Callable[[str], None], now: Callable[[], float]) -> None:
        self.path = path
        self.failure: str | None = None
        """Why the daemon does not answer, None while it does."""
        self._machines = machines
        self._say = say
        self._now = now
        self._client = DaemonClient(path)
        self._asking = DaemonClient(path)
        self._numbers: dict[str, int] = {}
        self._memory: dict[str, int] = {}
        self._statistics: dict[Key, Statistics] = {}
        self._silent: dict[Key, float] = {}
        self._ballooned: set[str] = set()
        self._reclaiming: dict[str, asyncio.Task[None]] = {}

    # -- looking -----------------------------------------------------------------------------------------------------

    async def look(self) -> tuple[dict[Key, VmView], int]:
        """Return the machines whose driver is ready, and the bytes that the host holds for the others. Both are empty
        while the daemon does not answer."""
        try:
            facts: list[Mapping[str, Any]] = await self._client.command("query-vms", LOOK_SECONDS)
        except (DaemonLostError, CommandError) as error:
            self._lost(str(error))
            return {}, 0
        if self.failure is not None:
            self._say(f"{self.path}: the daemon answers again")
            self.failure = None
        keys = {(str(self.path), self._client.connections, int(fact["vm"])): fact for fact in facts}
        ready = {key: fact for key, fact in keys.items() if fact["driver-ready"] and fact["guest-memory"] > 0}
        others = sum(int(fact["host-backed"] or 0) for key, fact in keys.items() if key not in ready)
        self._statistics = {key: said for key, said in self._statistics.items() if key in ready}
        self._silent = {key: since for key, since in self._silent.items() if key in ready}
        for key in ready:
            await self._ask(key)
        views = {
            key: self._machines.view(key, fact, self._statistics.get(key), self._now()) for key, fact in ready.items()
        }
        self._numbers = {view.name: key[2] for key, view in views.items()}
        self._memory = {view.name: view.memory_bytes for view in views.values()}
        self._ballooned &= self._numbers.keys()
        return views, others

    async def _ask(self, key: Key) -> None:
        # Statistics of one guest. What it said before stands, and ages, if it does not answer.
        if self._now() - self._silent.get(key, float("-inf")) < SILENCE_SECONDS:
            return
        try:
            answer = await self._asking.command("query-guest-statistics", STATISTICS_SECONDS, vm=key[2])
        except (CommandError, DaemonLostError):
            self._silent[key] = self._now()
            return
        self._silent.pop(key, None)
        self._statistics[key] = Statistics(answer["statistics"], self._now() - float(answer["age"]))

    def _lost(self, why: str) -> None:
        self._numbers = {}
        self._ballooned = set()
        if self.failure is None:
            self._say(f"{why} (tried again at every decision)")
        self.failure = why

    # -- acting ------------------------------------------------------------------------------------------------------

    def has(self, vm: str) -> bool:
        """Return whether ``vm`` was among the machines at the last look."""
        return vm in self._numbers

    async def act(self, action: Action) -> None:
        """Carry out one action. A balloon has its target afterwards; a reclaim is begun, unless one is under way. A
        failure is said and no more: the next decision comes soon."""
        vm = action.vm
        if isinstance(action, SetBalloon):
            self._ballooned.add(vm)
            await self._do(vm, "balloon", value=max(self._memory[vm] - action.size, 1))
        elif vm not in self._reclaiming:
            task = asyncio.create_task(self._reclaim(vm))
            self._reclaiming[vm] = task
            task.add_done_callback(lambda _task: self._reclaiming.pop(vm, None))

    async def _reclaim(self, vm: str) -> None:
        # On a connection of its own: it takes as long as the guest takes.
        client = DaemonClient(self.path)
        try:
            await client.command("reclaim", None, vm=self._numbers[vm])
        except BalloonError as error:
            self._say(f"{vm}: {error}")
        finally:
            client.close()

    async def _do(self, vm: str, command: str, **arguments: object) -> None:
        try:
            await self._client.command(command, LOOK_SECONDS, vm=self._numbers[vm], **arguments)
        except CommandError as error:
            self._say(f"{vm}: {error}")
        except DaemonLostError as error:
            self._lost(str(error))

    # -- the end -----------------------------------------------------------------------------------------------------

    async def reclaimed(self) -> None:
        """Return when every reclaim that was begun is over."""
        await asyncio.gather(*self._reclaiming.values(), return_exceptions=True)

    async def give_back(self) -> None:
        """Empty every balloon for which a target was set."""
        for vm in sorted(self._ballooned):
            if self.has(vm):
                await self._do(vm, "balloon", value=self._memory[vm])

    async def close(self) -> None:
        """Close the connections. A reclaim under way goes on in the daemon, which ends it in order."""
        tasks = list(self._reclaiming.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._client.close()
        self._asking.close()
