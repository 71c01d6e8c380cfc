"""Network namespaces of the machines of a run: each that asks for one sees no network but its own loopback.

A machine that is bridged has an interface ``eth0`` beside it, and reaches the other bridged ones of the run. It has no
address but the link-local one of IPv6, and the host has no part in that bridge. A real kernel under User Mode Linux is
in the namespace with its process: what it does through the host's network is confined with it.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from host import netlink
from protocol.errors import BalloonError
from scripts.scenario.real.leftovers import lives
from scripts.scenario.scenario import VmSpec

PREFIX: Final = "balloon-run-"
"""Of the names of namespaces; the process id of the run follows, then the number of the machine."""


class Networks:
    """The namespaces of a run, gone when the context is left. ``say`` takes a line where one cannot be had: then that
    machine runs in the host's namespace."""

    def __init__(self, vms: Iterable[VmSpec], say: Callable[[str], None]) -> None:
        self._vms = tuple(vms)
        self._say = say
        self._stack = ExitStack()
        self._bridge: str | None = None
        self.prefixes: dict[str, list[str]] = {}
        """By the machine's name, the words before a command that run it in the machine's namespace."""

    def __enter__(self) -> Self:
        wanted = [(number, vm) for number, vm in enumerate(self._vms) if vm.has_network]
        if not wanted:
            with contextlib.suppress(BalloonError):  # those of another user
                remove_old()
            return self
        nsenter = shutil.which("nsenter")
        with ExitStack() as stack:
            stack.push(self._stack)
            try:
                if nsenter is None:
                    raise BalloonError("nsenter: no such program")
                remove_old()
                for number, vm in wanted:
                    self.prefixes[vm.name] = [nsenter, f"--net={self._make(number, vm)}", "--"]
            except BalloonError as error:
                self.prefixes.clear()
                self._say(f"the machines share the host's network: {error}")
                return self
            stack.pop_all()
        return self

    def _make(self, number: int, vm: VmSpec) -> str:
        name = f"{PREFIX}{os.getpid()}-{number}"
        file = netlink.make_namespace(name)
        self._stack.callback(netlink.remove_namespace, name)
        if vm.is_bridged:
            if self._bridge is None:
                bridge = f"vub{os.getpid()}"
                netlink.make_bridge(bridge)
                self._stack.callback(netlink.remove_interface, bridge)
                self._bridge = bridge
            port = f"{self._bridge}p{number}"
            netlink.attach(name, self._bridge, port)
            self._stack.callback(netlink.remove_interface, port)
        return str(file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def remove_old() -> None:
    """Remove the namespaces and bridges of runs that were killed."""
    if not netlink.NAMESPACES.is_dir():
        return
    for path in netlink.NAMESPACES.glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not lives(int(pid)):
            netlink.remove_namespace(path.name)
            netlink.remove_interface(f"vub{pid}")
