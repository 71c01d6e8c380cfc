"""How many sessions a front-end's process has, of all workers together.

A session counts until all that it held was released. A front-end that ends its sessions and connects anew at once would
find them counted still, so a connection past the limit waits while those that were not ended are within it.
"""

import contextlib
import logging
import select
from collections import deque
from enum import Enum

from host.supervision.supervised_vm import SupervisedVm

log = logging.getLogger(__name__)


class Admission(Enum):
    """What becomes of a new connection."""

    BEGINS = "begins"
    WAITS = "waits"
    REFUSED = "refused"


class _Process:
    def __init__(self) -> None:
        self.sessions: dict[int, SupervisedVm] = {}
        self.waiting: deque[SupervisedVm] = deque()
        self.was_refused = False
        self._poll = select.poll()

    def watch(self, vm: SupervisedVm) -> None:
        self._poll.register(vm.connection, select.POLLRDHUP)

    def forget(self, vm: SupervisedVm) -> None:
        with contextlib.suppress(KeyError):
            self._poll.unregister(vm.connection)

    @property
    def ended(self) -> int:
        # Connections that the front-end has closed, or on which it sends no more.
        return len(self._poll.poll(0))


class ProcessSessions:
    """The sessions of each process, at most ``most`` of one; ``waiting`` connections more may wait for these to be
    released. A process of another pid namespace has no number here (0):
    each of its sessions counts as a process of its own."""

    def __init__(self, most: int, waiting: int) -> None:
        self._most = most
        self._waiting = waiting
        self._processes: dict[int, _Process] = {}

    def admit(self, vm: SupervisedVm) -> Admission:
        """Count the session of a new connection, and return what becomes of it. One that is refused does not count."""
        if not vm.process:
            return Admission.BEGINS
        process = self._processes.setdefault(vm.process, _Process())
        if len(process.sessions) < self._most:
            process.sessions[vm.number] = vm
            process.watch(vm)
            return Admission.BEGINS
        waiting = len(process.waiting)
        if waiting < self._waiting and self._most + waiting - process.ended < self._most:
            process.waiting.append(vm)
            process.watch(vm)
            return Admission.WAITS
        if not process.was_refused:  # one line: it may connect in a loop
            process.was_refused = True
            log.warning("process %d has %d sessions: further ones are refused", vm.process, self._most)
        return Admission.REFUSED

    def forget(self, vm: SupervisedVm) -> SupervisedVm | None:
        """Take note that all of a session was released but for its connection. Return the one that waited for it and
        begins now."""
        process = self._processes.get(vm.process)
        if process is None:
            return None
        process.forget(vm)
        if vm in process.waiting:
            process.waiting.remove(vm)
        elif process.sessions.pop(vm.number, None) is not None and process.waiting:
            begins = process.waiting.popleft()
            process.sessions[begins.number] = begins
            return begins
        if not process.sessions:
            del self._processes[vm.process]
        return None

    def waits(self, vm: SupervisedVm) -> bool:
        """Return whether a connection waits for a session of its process to be released."""
        process = self._processes.get(vm.process)
        return process is not None and vm in process.waiting
