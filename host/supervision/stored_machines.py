"""What an earlier supervisor has left with the service manager, put together: machines, and ways to their workers."""

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable
from typing import Final

from host.configuration.device_options import parse_device_options
from host.descriptors.closing import Closer
from host.service_manager.service_manager import HandedOver, ServiceManager
from host.supervision.descriptor_shares import DescriptorShares
from host.supervision.link import Link
from host.supervision.packets import UNREADABLE, Packet, PacketError, parse_legacy
from host.supervision.supervised_vm import SupervisedVm
from host.supervision.worker_process import END_PATIENCE
from host.vm_store.vm_record import VmRecord
from host.vm_store.vm_store import KeptVm, name_of, number_in
from protocol.errors import BalloonError

log = logging.getLogger(__name__)

_LINK: Final = re.compile("worker[0-9]{1,9}[.][0-9a-f]{8}")


class FormerWorker:
    """A worker of an earlier supervisor, which ends or has ended. What it has said is on the way to it still:
    ``on_packet`` is called with that, ``on_gone`` after the last packet, when it has ended."""

    def __init__(
        self,
        link: str,
        sock: socket.socket,
        on_packet: Callable[["FormerWorker", Packet], None],
        on_gone: Callable[["FormerWorker"], None],
    ) -> None:
        self.link = link
        self.number = int(link.partition(".")[0].removeprefix("worker"))
        self.vms: dict[int, SupervisedVm] = {}
        self.alone = False
        """Whether it is to be told to stop after its last machine."""
        self._closer = Closer()
        self._on_gone = on_gone
        on_bad = self._on_bad
        self._link = Link(
            sock, lambda packet: on_packet(self, packet), lambda: on_gone(self), keeps=True, on_bad=on_bad
        )
        self._overdue = asyncio.get_running_loop().call_later(END_PATIENCE, self._go_on_without)

    def _go_on_without(self) -> None:
        # It was killed with its supervisor. Another process may have its end, to which it has passed that on.
        self._link.take_all()
        if not self._link.closed:
            self._link.close()
            self._on_gone(self)

    def _on_bad(self, error: PacketError, fds: tuple[int, ...]) -> None:
        log.error("worker %d was at fault: %s", self.number, error)
        self._closer.close(fds)
        self._link.close()
        self._on_gone(self)

    def close_files(self, fds: Iterable[int]) -> None:
        """Close descriptors that came from it and belong to no machine of its."""
        self._closer.close(fds)

    def send(self, packet: Packet) -> None:
        """Do nothing: it hears nothing more."""

    def close(self) -> None:
        """Hear no more of it."""
        self._overdue.cancel()
        self._link.close()


class StoredMachines:
    """What was ``handed_over``, which ``manager`` still keeps. What cannot be used is said in one line each, closed,
    and kept no longer."""

    def __init__(
        self, manager: ServiceManager, handed_over: HandedOver, shares: DescriptorShares | None = None
    ) -> None:
        self._manager = manager
        self._handed_over = handed_over
        self._shares = shares
        names = handed_over.names
        self.lost: dict[int, str] = {}
        """Why machines cannot be gone on with, by number."""
        self.vms = list(self._machines(sorted({number for name in names if (number := number_in(name)) is not None})))
        """The machines that can be gone on with, by number."""
        self.links = {name: sock for name in filter(_LINK.fullmatch, names) if (sock := self._link(name)) is not None}
        """The ways to the workers that served them, by name."""
        if left_over := handed_over.names:
            log.warning("descriptors are closed that mean nothing here: %s", ", ".join(sorted(left_over)))
            self._drop(left_over)

    def _take(self, name: str) -> int:
        fd = self._handed_over.take(name)
        assert fd is not None
        return fd

    def _link(self, name: str) -> socket.socket | None:
        fd = self._take(name)
        try:
            return socket.socket(fileno=fd)
        except OSError as error:
            log.warning("%s cannot be a way to a worker: %s", name, error.strerror)
            os.close(fd)
            self._manager.remove(name)
            return None

    def _drop(self, names: Iterable[str]) -> None:
        names = list(names)
        for name in names:
            self._manager.remove(name)
        self._handed_over.close(names)

    def _machines(self, numbers: Iterable[int]) -> Iterable[SupervisedVm]:
        for number in numbers:
            try:
                vm = self._machine(number)
            except (BalloonError, OSError) as error:
                self.lost[number] = why = (error.strerror if isinstance(error, OSError) else "") or str(error)
                log.error("vm %d: its session ends: %s", number, why)
                vm = None
            # What no record names was left over when the supervisor was killed.
            self._drop(name for name in self._handed_over.names if number_in(name) == number)
            if vm is not None:
                yield vm

    def _machine(self, number: int) -> SupervisedVm | None:
        names = self._handed_over.names
        if name_of(number, "connection") not in names:
            return None  # it was about to be forgotten, or had just been accepted
        if missing := {name_of(number, "record"), name_of(number, "replies")} - set(names):
            raise BalloonError(f"{len(missing)} of its descriptors have not come back")
        connection, *files = [self._take(name_of(number, what)) for what in ("connection", "record", "replies")]
        store = KeptVm(self._manager, number, *files)
        sock: socket.socket | None = None
        try:
            sock = socket.socket(fileno=connection)
            record = store.read()
            _check(record)
            vm = SupervisedVm(number, sock, shares=self._shares)
            vm.resume(record, self._files(record), store)
        except (BalloonError, OSError):
            store.close()
            if sock is not None:
                sock.close()
            raise
        return vm

    def _files(self, record: VmRecord) -> dict[int, int]:
        present = set(self._handed_over.names)
        if missing := set(record.names.values()) - present:
            raise BalloonError(f"{len(missing)} of its descriptors have not come back")
        fds: dict[str, int] = {}
        files = {}
        for number, name in record.names.items():
            files[number] = os.dup(fds[name]) if name in fds else self._take(name)
            fds.setdefault(name, files[number])
        return files


def _check(record: VmRecord) -> None:
    try:
        legacy = parse_legacy(record.legacy)
        parse_device_options(record.device)
    except UNREADABLE as error:
        raise BalloonError("what is kept of it cannot be read") from error
    from host.supervision.journal import parse_journal  # late: a supervisor needs it to go on with machines alone

    parse_journal(legacy.journal)
