"""The policy at work on a real run: it looks at the machines through the daemon's control socket, decides, and acts.

It has a thread and an event loop of its own. A look waits for guests, and the run's samples must not.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from host.policy.contained import ContainedPolicy, DecisionRecord
from host.policy.live.daemon import Daemon
from host.policy.live.machines import Machines
from host.policy.observation import HostView, Observation, VmView
from host.policy.policy import Policy, SetBalloon
from scripts.scenario.real.real_run import RealRun
from scripts.scenario.run_record import RecordedDecision

END_SECONDS: Final = 5.0
"""Time that a command under way has when the run ends."""


class LivePolicy:
    """Applies ``policy`` to a run, from :meth:`start` until :meth:`stop`. ``say`` takes lines for people."""

    def __init__(self, policy: Policy, say: Callable[[str], None]) -> None:
        self._policy = policy
        self._say = say
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, control: Path, run: RealRun) -> None:
        """Begin to decide for ``run``, whose daemon answers at ``control``."""
        work = _Work(self._policy, control, run, self._say, self._stopped)
        self._thread = threading.Thread(target=lambda: asyncio.run(work.go_on()), daemon=True, name="policy")
        self._thread.start()

    def stop(self) -> None:
        """Decide no more. A decision that does not end is left behind, and told."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                self._say(f"policy {self._policy.name}: its last decision has not ended, and is not waited for")


class _Work:
    def __init__(
        self, policy: Policy, control: Path, run: RealRun, say: Callable[[str], None], stopped: threading.Event
    ) -> None:
        self._policy = ContainedPolicy(policy, self._tell)
        self._interval = max(0.1, float(policy.interval))
        self._run = run
        self._stopped = stopped
        self._daemon = Daemon(control, Machines(), say, lambda: run.now)
        self._names: dict[str, str] = {}
        """The daemon's name of each machine, by the scenario's."""

    def _tell(self, line: str) -> None:
        event = {"t": round(self._run.now, 6), "event": "policy_fault", "side": "run", "message": line}
        self._run.record.events.append(event)

    async def go_on(self) -> None:
        try:
            await self._decide()  # at once, as in virtual time
            while not await asyncio.to_thread(self._stopped.wait, self._interval):
                await self._decide()
        finally:
            await self._daemon.close()

    async def _decide(self) -> None:
        views, _ = await self._daemon.look()
        vms: dict[str, VmView] = {}
        for key, view in views.items():
            machine = self._run.machine_of_session(key[2])
            if machine is not None:
                name = machine.spec.name
                self._names[name] = view.name
                vms[name] = replace(
                    view,
                    name=name,
                    refaulted_bytes=machine.refaulted_bytes,
                    stall_seconds=machine.stall_seconds,
                    host_backed_bytes=machine.resident_bytes,
                )
        run = self._run
        host = HostView(budget_bytes=run.budget_bytes, used_bytes=run.used_bytes, pressure=run.pressure)
        decision = self._policy.decide(Observation(now=run.now, host=host, vms=vms))
        for action in decision.actions:
            if isinstance(action, SetBalloon):
                run.machines[action.vm].target_bytes = action.size
            await self._daemon.act(replace(action, vm=self._names[action.vm]))
        run.record.decisions.append(_recorded(decision, decision.inputs()))


def _recorded(decision: DecisionRecord, inputs: dict[str, Any]) -> RecordedDecision:
    return RecordedDecision(
        t=round(decision.seen.now, 3),
        policy=decision.policy,
        reason=decision.reason,
        inputs=inputs,
        actions=decision.actions,
        error=decision.problem,
    )
