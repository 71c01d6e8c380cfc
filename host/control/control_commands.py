"""The commands of the control socket.

``balloon``, ``query-balloon``, ``qom-*`` and ``BALLOON_CHANGE`` have the meaning that they have in QEMU. Unlike QEMU
the daemon serves many virtual machines: commands take a number ``vm``, which may be omitted while only one is
connected.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from host.control.backed_memory import together
from host.control.daemon_status import DaemonStatus
from host.control.qom import ObjectTree
from host.control.reclaim_progress import ReclaimLimits, ReclaimMethod
from host.control.vm_facts import describe, logical_size
from host.control.vm_interface import VmInterface
from host.qmp.negotiation import NEGOTIATE
from host.qmp.qmp import Arguments, ErrorClass, QmpError, Request, shown
from protocol.errors import BalloonError
from protocol.virtio_balloon import NUM_PAGES_MAX, PFN_SHIFT

log = logging.getLogger(__name__)

MACHINES_AT_ONCE: Final = 8
"""Machines that are described in one turn of the event loop: a millisecond."""

WHY_MAX: Final = 200
"""Most characters of an operator's reason."""

_METHODS: Final = [method.value for method in ReclaimMethod]


class ControlCommands:
    """Carries out commands on the virtual machines in ``vms``, which the daemon keeps up to date.

    ``now`` returns the seconds since 1970; ``version`` is the answer to ``query-version``, and ``status`` gives that to
    ``query-status``.
    """

    def __init__(
        self,
        vms: Mapping[int, VmInterface],
        now: Callable[[], float],
        version: Mapping[str, Any],
        status: DaemonStatus | None = None,
    ) -> None:
        self._vms = vms
        self._status = DaemonStatus() if status is None else status
        self._tree = ObjectTree(vms, now)
        self._version = version
        self._commands: Mapping[str, Callable[[Arguments], Awaitable[object]]] = {
            "allow": self._allow,
            "balloon": self._balloon,
            "disconnect": self._disconnect,
            "inhibit": self._inhibit,
            "qom-get": self._qom_get,
            "qom-list": self._qom_list,
            "qom-set": self._qom_set,
            "query-balloon": self._query_balloon,
            "query-commands": self._query_commands,
            "query-guest-statistics": self._query_guest_statistics,
            "query-status": self._query_status,
            "query-version": self._query_version,
            "query-vms": self._query_vms,
            "reclaim": self._reclaim,
            "set-log-level": self._set_log_level,
        }

    def has(self, name: str) -> bool:
        """Return whether there is a command of this name."""
        return name in self._commands

    async def perform(self, request: Request) -> bytes:
        """Carry out one command and return its answer, an error included. It takes as long as the guest takes."""
        try:
            command = self._commands.get(request.name)
            if command is None:
                reason = f"unknown command {shown(request.name)} (query-commands lists them)"
                raise QmpError(reason, ErrorClass.COMMAND_NOT_FOUND)
            return request.success(await command(request.arguments))
        except QmpError as error:
            return request.failure(error)
        except BalloonError as error:
            return request.failure(QmpError(str(error)))
        except Exception:
            # A fault of the daemon fails this command only.
            log.exception("%s: internal error", request.name)
            return request.failure(QmpError("internal error"))

    async def query(self, name: str) -> Any:
        """Return what the command ``name``, without arguments, returns. Raises :class:`BalloonError`."""
        return await self._commands[name](Arguments({}))

    # -- about this server -------------------------------------------------------------------------------------------

    async def _query_commands(self, arguments: Arguments) -> list[dict[str, str]]:
        arguments.end()
        return [{"name": name} for name in sorted((*self._commands, NEGOTIATE))]

    async def _query_version(self, arguments: Arguments) -> Mapping[str, Any]:
        arguments.end()
        return self._version

    async def _query_status(self, arguments: Arguments) -> dict[str, Any]:
        arguments.end()
        return self._status.describe(len(self._vms))

    async def _set_log_level(self, arguments: Arguments) -> dict[str, object]:
        level = arguments.text("level")
        arguments.end()
        self._status.set_log_level(level)
        return {}

    async def _disconnect(self, arguments: Arguments) -> dict[str, object]:
        _, control = self._take_vm(arguments)
        arguments.end()
        control.disconnect()
        return {}

    async def _inhibit(self, arguments: Arguments) -> dict[str, object]:
        _, control = self._take_vm(arguments)
        why = arguments.optional_text("why")
        arguments.end()
        if why is not None and (len(why) > WHY_MAX or not why.isprintable()):
            raise QmpError(f"parameter 'why' has to be at most {WHY_MAX} printable characters")
        await control.inhibit(why or "on request")
        return {}

    async def _allow(self, arguments: Arguments) -> dict[str, object]:
        vm, control = self._take_vm(arguments)
        force = arguments.optional_boolean("force")
        arguments.end()
        still = await control.allow(force=bool(force))
        return {"vm": vm, "inhibited": None if still is None else {"by": still.by.value, "why": still.why}}

    # -- the balloon's size ------------------------------------------------------------------------------------------

    async def _query_vms(self, arguments: Arguments) -> list[dict[str, object]]:
        arguments.end()
        vms = sorted(self._vms.items())
        backed = await together(control.backed_bytes() for _, control in vms)
        entries = []
        for (vm, control), size in zip(vms, backed, strict=True):
            entries.append(describe(vm, control.info(), size))
            if len(entries) % MACHINES_AT_ONCE == 0:
                await asyncio.sleep(0)  # hundreds of machines must not stall the guests
        return entries

    async def _query_balloon(self, arguments: Arguments) -> dict[str, int]:
        vm, control = self._take_vm(arguments)
        arguments.end()
        return {"actual": logical_size(_memory_bytes(vm, control), control.info().actual)}

    async def _balloon(self, arguments: Arguments) -> dict[str, int]:
        value = arguments.integer("value")
        vm, control = self._take_vm(arguments)
        stated = arguments.optional_integer("guest-memory")
        arguments.end()
        if value <= 0:
            raise QmpError("parameter 'value' has to be a size in bytes, above 0")
        if stated is not None:
            if stated < 0:
                raise QmpError("parameter 'guest-memory' has to be a size in bytes, or 0")
            control.state_memory(stated)
        memory_bytes = _memory_bytes(vm, control)
        # A size beyond the memory means an empty balloon, as in QEMU.
        control.set_num_pages(min((memory_bytes - min(value, memory_bytes)) >> PFN_SHIFT, NUM_PAGES_MAX))
        return {}

    # -- asking the guest --------------------------------------------------------------------------------------------

    async def _query_guest_statistics(self, arguments: Arguments) -> dict[str, object]:
        vm, control = self._take_vm(arguments)
        arguments.end()
        _require_driver(vm, control)
        statistics = await control.statistics()
        return {"vm": vm, "age": round(statistics.age, 6), "statistics": dict(statistics.values)}

    async def _reclaim(self, arguments: Arguments) -> dict[str, object]:
        vm, control = self._take_vm(arguments)
        method = arguments.optional_text("method")
        limits = ReclaimLimits(
            floor=_take_size(arguments, "floor"),
            pace=_take_size(arguments, "pace"),
            stop_on_refault=bool(arguments.optional_boolean("stop-on-refault")),
        )
        arguments.end()
        if method is not None and method not in _METHODS:
            raise QmpError(f"parameter 'method' has to be {' or '.join(_METHODS)}")
        _require_driver(vm, control)
        result = await control.reclaim(None if method is None else ReclaimMethod(method), limits)
        return {
            "vm": vm,
            "method": result.method.value,
            "offered-bytes": result.offered_bytes,
            "discarded-bytes": result.discarded_bytes,
            "seconds": round(result.seconds, 6),
            "complete": result.complete,
            "stopped-by": None if result.stopped_by is None else result.stopped_by.value,
        }

    # -- objects and properties --------------------------------------------------------------------------------------

    async def _qom_list(self, arguments: Arguments) -> list[dict[str, str]]:
        path = arguments.text("path")
        arguments.end()
        return self._tree.properties(path)

    async def _qom_get(self, arguments: Arguments) -> object:
        path, name = arguments.text("path"), arguments.text("property")
        arguments.end()
        return self._tree.get(path, name)

    async def _qom_set(self, arguments: Arguments) -> dict[str, object]:
        path, name, value = arguments.text("path"), arguments.text("property"), arguments.anything("value")
        arguments.end()
        self._tree.set(path, name, value)
        return {}

    def _take_vm(self, arguments: Arguments) -> tuple[int, VmInterface]:
        vm = arguments.optional_integer("vm")
        if vm is None:
            if not self._vms:
                raise QmpError("no virtual machine is connected", ErrorClass.DEVICE_NOT_ACTIVE)
            if len(self._vms) > 1:
                raise QmpError(f"parameter 'vm' is missing: {len(self._vms)} virtual machines are connected")
            (vm,) = self._vms
        if vm not in self._vms:
            raise QmpError(f"vm {vm} is not connected", ErrorClass.DEVICE_NOT_FOUND)
        return vm, self._vms[vm]


def _take_size(arguments: Arguments, name: str) -> int:
    size = arguments.optional_integer(name)
    if size is not None and size < 0:
        raise QmpError(f"parameter '{name}' has to be a size in bytes, or 0")
    return size or 0


def _memory_bytes(vm: int, control: VmInterface) -> int:
    info = control.info()
    if info.memory_bytes == 0:
        raise QmpError(f"vm {vm} has not shared its memory yet", ErrorClass.DEVICE_NOT_ACTIVE)
    return info.guest_bytes


def _require_driver(vm: int, control: VmInterface) -> None:
    if not control.info().driver_ready:
        raise QmpError(f"vm {vm} has no driver that is ready", ErrorClass.DEVICE_NOT_ACTIVE)
