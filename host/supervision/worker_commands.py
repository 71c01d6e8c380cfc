"""Commands of control clients where workers serve the machines: each goes to the worker that it concerns."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from host.qmp.qmp import ErrorClass, QmpError, Request
from host.supervision.packets import Kind
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.worker_process import WorkerGone, WorkerProcess
from host.supervision.worker_words import is_one_answer, number_in_line, own_entries, own_samples, own_status

ANSWER_PATIENCE: Final = 1.0
"""Seconds that one worker has to answer a question to all of them."""

_NOT_SERVED: Final = ("not-served",)
"""What is wrong with a machine whose worker does not answer, see :class:`host.doctor.finding.Cause`."""

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
        self._last_samples: dict[int, list[Any]] = {}

    def forget(self, vm: int) -> None:
        """Take note that a machine has gone."""
        self._last_entries.pop(vm, None)
        self._last_samples.pop(vm, None)

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
            worker, arguments = self._worker_of(vm), self._with_vm(request, vm)
            answer = await worker.command(request.name, arguments, dict(request.reply))
            if not is_one_answer(answer):
                raise QmpError("its worker's answer cannot be read")
            return answer
        except QmpError as error:
            return request.failure(error)
        except WorkerGone as error:
            return request.failure(QmpError(f"{error} before it has answered"))

    async def query(self, name: str) -> Any:
        """Return what a ``query-`` command returns, and to ``samples`` those of all machines: lists that begin with
        the machine's number and whether its worker has answered."""
        match name:
            case "query-vms":
                return await self._query_vms()
            case "samples":
                return await self._samples()
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
        found = {vm: entry for worker, answer in answers for vm, entry in own_entries(answer, worker.vms).items()}
        self._last_entries.update(found)
        for vm, record in self._vms.items():
            if self._waits(record):
                continue
            # Counters that went for a moment would look like a new machine.
            last = self._last_entries.get(vm, {"vm": vm})
            found.setdefault(vm, last | {"health": _NOT_SERVED, "broken": "its worker does not answer"})
        return [found[vm] for vm in sorted(found)]

    async def _samples(self) -> list[list[Any]]:
        answers = await self._ask_all(lambda worker: worker.ask(Kind.SAMPLES))
        found = {vm: sample for worker, answer in answers for vm, sample in own_samples(answer, worker.vms).items()}
        self._last_samples.update({vm: sample for vm, sample in found.items() if vm in self._vms})
        # Of a worker that does not answer those before: counters that went for a moment would seem to begin anew.
        return [
            self._last_samples[vm] if vm in found else [vm, False, *self._last_samples[vm][2:]]
            for vm in sorted(self._vms.keys() & self._last_samples.keys())
        ]

    async def _ask_all(self, ask: Any) -> list[tuple[WorkerProcess, bytes]]:
        async def answer(worker: WorkerProcess) -> tuple[WorkerProcess, bytes] | None:
            with contextlib.suppress(TimeoutError, WorkerGone):
                async with asyncio.timeout(ANSWER_PATIENCE):
                    return worker, await ask(worker)
            return None

        workers = [worker for worker in self._workers.values() if worker.vms and not worker.gone]
        answers = await asyncio.gather(*map(answer, workers))
        return [answer for answer in answers if answer is not None]

    async def status(self) -> list[str]:
        """Return a line about each virtual machine, for people."""
        answers = await self._ask_all(lambda worker: worker.ask(Kind.STATUS))
        lines = [line for worker, answer in answers for line in own_status(answer, worker.vms)]
        return sorted(lines, key=number_in_line)
