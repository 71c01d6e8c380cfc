"""Commands of control clients where workers serve the machines: each goes to the worker that it concerns."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from host.qmp.qmp import ErrorClass, QmpError, Request
from host.supervision.packets import Kind
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.worker_process import WorkerGone, WorkerProcess

ANSWER_PATIENCE: Final = 1.0
"""Seconds that one worker has to answer a question to all of them."""

_OF_ALL: Final = frozenset({"query-commands", "query-status", "query-version", "set-log-level"})
"""Commands that concern no virtual machine."""


class LocalCommands(Protocol):
    """Carries out commands that concern no machine, see :class:`host.control.control_commands.ControlCommands`."""

    def has(self, name: str) -> bool:
        """Return whether there is such a command."""

    async def perform(self, request: Request) -> bytes:
        """Carry out one command and return its answer."""

    async def query(self, name: str) -> Any:
        """Return what a ``query-`` command returns."""


class WorkerCommands:
    """Carries out commands about ``vms``, which ``workers`` serve; both change. ``local`` are the commands about this
    process, ``describe`` returns the answer to ``query-status`` for so many machines, ``waits`` whether a machine has
    not begun."""

    def __init__(
        self,
        vms: Mapping[int, SupervisedVm],
        workers: Mapping[int, WorkerProcess],
        local: Callable[[], LocalCommands],
        describe: Callable[[int], dict[str, Any]],
        waits: Callable[[SupervisedVm], bool],
    ) -> None:
        self._vms = vms
        self._workers = workers
        self._local = local
        self._describe = describe
        self._waits = waits
        self._last_entries: dict[int, dict[str, Any]] = {}

    def forget(self, vm: int) -> None:
        """Take note that a machine has gone."""
        self._last_entries.pop(vm, None)

    async def perform(self, request: Request) -> bytes:
        """Carry out one command and return its answer."""
        try:
            if request.name == "query-vms" and not request.arguments.members:
                return request.success(await self._query_vms())
            if request.name == "query-status" and not request.arguments.members:
                return request.success(self._describe(len(self._vms)))
            vm = self._vm_of(request)
            if vm is None:
                if request.name == "set-log-level":
                    arguments = dict(request.arguments.members)
                    await self._ask_all(lambda worker: worker.command("set-log-level", arguments, {}))
                return await self._local().perform(request)
            return await self._worker_of(vm).command(request.name, self._with_vm(request, vm), dict(request.reply))
        except QmpError as error:
            return request.failure(error)
        except WorkerGone as error:
            return request.failure(QmpError(f"{error} before it has answered"))

    async def query(self, name: str) -> Any:
        """Return what a ``query-`` command returns."""
        match name:
            case "query-vms":
                return await self._query_vms()
            case "query-status":
                return self._describe(len(self._vms))
            case _:
                return await self._local().query(name)

    def _vm_of(self, request: Request) -> int | None:
        # The machine that a command is about. None: this process answers, be it with an error.
        members = request.arguments.members
        if request.name.startswith("qom-"):
            name = str(members.get("path", "")).rstrip("/").rpartition("/")[2].removeprefix("vm")
            number = int(name) if name.isascii() and name.isdecimal() and len(name) < 20 else None
        elif "vm" in members:
            number = members["vm"] if type(members["vm"]) is int else None
        elif request.name in _OF_ALL or not self._local().has(request.name):
            number = None
        elif len(self._vms) > 1:
            raise QmpError(f"parameter 'vm' is missing: {len(self._vms)} virtual machines are connected")
        else:
            number = next(iter(self._vms), None)
        return number if number in self._vms else None

    @staticmethod
    def _with_vm(request: Request, vm: int) -> dict[str, Any]:
        members = dict(request.arguments.members)
        return members if request.name.startswith("qom-") else members | {"vm": vm}

    def _worker_of(self, vm: int) -> WorkerProcess:
        for worker in self._workers.values():
            if vm in worker.vms and not worker.gone:
                return worker
        raise QmpError(f"vm {vm} has no worker at present", ErrorClass.DEVICE_NOT_ACTIVE)

    async def _query_vms(self) -> list[dict[str, Any]]:
        answers = await self._ask_all(lambda worker: worker.command("query-vms", {}, {}))
        found = {entry["vm"]: entry for answer in answers for entry in json.loads(answer)["return"]}
        found = {vm: entry for vm, entry in found.items() if vm in self._vms}
        self._last_entries.update(found)
        for vm, record in self._vms.items():
            if self._waits(record):
                continue
            # Counters that went for a moment would look like a new machine.
            found.setdefault(vm, {"vm": vm, **self._last_entries.get(vm, {}), "broken": "its worker does not answer"})
        return [found[vm] for vm in sorted(found)]

    async def _ask_all(self, ask: Any) -> list[bytes]:
        async def answer(worker: WorkerProcess) -> bytes | None:
            with contextlib.suppress(TimeoutError, WorkerGone):
                async with asyncio.timeout(ANSWER_PATIENCE):
                    answer: bytes = await ask(worker)
                    return answer
            return None

        workers = [worker for worker in self._workers.values() if worker.vms and not worker.gone]
        answers = await asyncio.gather(*map(answer, workers))
        return [answer for answer in answers if answer is not None]

    async def status(self) -> list[str]:
        """Return a line about each virtual machine, for people."""
        answers = await self._ask_all(lambda worker: worker.ask(Kind.STATUS))
        return sorted((line for answer in answers for line in json.loads(answer)), key=_number_in)


def _number_in(line: str) -> int:
    return int(line.split()[1])
