"""The sessions of the virtual machines that one process serves."""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from host.balloon.free_page_hinting import COMMAND_ID_FIRST, COMMAND_IDS, FreePageHinting
from host.balloon.personality import PERSONALITIES
from host.balloon.virtio_balloon import VirtioBalloon
from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions
from host.connection import Connection
from host.control.control_commands import ControlCommands
from host.control.daemon_status import DaemonStatus
from host.control.status import vm_lines
from host.control.vm_control import VmControl
from host.control.vm_facts import logical_size
from host.daemon_options import DaemonOptions
from host.events.metrics import VmMetrics
from host.events.session_events import SessionEvents, SessionLimit
from host.guest_name import guest_name
from host.inhibition.front_end_look import take_told
from host.inhibition.inhibition import Sign
from host.metrics.sample import sample_of
from host.migration.dirty_log import CAN_LOG
from host.peers.peers import Peers
from host.qmp.qmp import Request
from host.recording.session_recording import NOT_RECORDED, SessionRecording
from host.ring.eventfd_signal import prepare_signals
from host.session_release import unreleased_sessions
from host.supervision.machines import Notices, Unnoticed
from host.supervision.session_journal import NOT_JOURNALED, SessionJournal
from host.vhost_user.queue_numbers import QueueNumbers
from host.vhost_user.session import OFFERED_PROTOCOL_FEATURES, Session
from protocol.balloon_config import BalloonConfig
from protocol.process.events import EventLog
from protocol.recording.records import Record
from protocol.vhost_user import ProtocolFeature
from protocol.virtio import LOG_ALL, feature_mask

log = logging.getLogger(__name__)

WORKERS_MAX: Final = 256
"""Most threads that discard at the same time. They are started on demand. A guest takes at most one for each of its
queues, so guests that are slow on purpose leave enough for the others."""


class Sessions:
    """Serves each virtual machine until it goes away. ``version`` is the answer to ``query-version``, and
    ``status`` gives that to ``query-status``."""

    def __init__(
        self,
        options: DaemonOptions,
        events: EventLog,
        record: Callable[[Record], None] | None,
        version: Mapping[str, Any],
        status: DaemonStatus | None = None,
    ) -> None:
        """Begin with none. ``record`` takes what the sessions to come record, None for nothing. Raises like
        :class:`Peers`."""
        self.notices: Notices = Unnoticed()
        self._options = options
        self._vms: dict[int, VmControl] = {}
        self._commands = ControlCommands(self._vms, time.time, version, status)
        self._events = events
        self.record = record
        self._executor = ThreadPoolExecutor(WORKERS_MAX, thread_name_prefix="discard")
        self._peers = Peers(self._executor)
        self._session_limit = SessionLimit(events.emit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops = False
        prepare_signals()

    @property
    def held_up(self) -> bool:
        """Whether a worker is still held up by a front-end whose session has ended."""
        return bool(unreleased_sessions())

    def start(self) -> None:
        """Do nothing: there is nothing to begin before the first session."""

    @property
    def outlives(self) -> bool:
        """False: the sessions end with this process."""
        return False

    async def let_go(self) -> None:
        """End every session."""
        await self.finish()

    async def perform(self, request: Request) -> bytes:
        """Carry out one command and return its answer."""
        return await self._commands.perform(request)

    async def query(self, name: str) -> Any:
        """Return what a ``query-`` command returns, and to ``samples`` those of all virtual machines."""
        if name == "samples":
            return [sample_of(entry) for entry in await self._commands.query("query-vms")]
        return await self._commands.query(name)

    def take_signs(self, pid: int, signs: Sign) -> None:
        """Take what the descriptors of process ``pid`` show, for where this process may not look at them."""
        if take_told(pid, signs):
            for vm in self._vms.values():
                vm.look_again(pid)

    async def status(self) -> list[str]:
        """Return a line about each virtual machine, for people, by number."""
        return list(vm_lines({number: vm.info() for number, vm in self._vms.items()}))

    async def all_gone(self) -> None:
        """Return when no virtual machine is served."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def serve(
        self,
        vm: int,
        sock: socket.socket,
        journal: SessionJournal = NOT_JOURNALED,
        *,
        device: DeviceOptions = DEFAULT_DEVICE,
    ) -> "asyncio.Task[None]":
        """Serve the virtual machine at the other end of ``sock``, which changes its owner, with this ``device``.
        ``journal`` keeps what another process needs to go on with the session. Return what does so."""
        task = asyncio.create_task(self._serve_vm(vm, sock, journal, device), name=f"vm {vm}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve_vm(self, vm: int, sock: socket.socket, journal: SessionJournal, device: DeviceOptions) -> None:
        session = new_session(device)

        def on_audible() -> None:
            log.info("vm %d connected, process %d", vm, connection.peer_pid)
            self.notices.emit("VM_CONNECTED", {"vm": vm, "pid": connection.peer_pid, "name": connection.control.name})

        events = SessionEvents(partial(self._events.prepare, vm=vm), self._session_limit, on_audible)
        recording = NOT_RECORDED if self.record is None else _record(vm, self.record)
        written = self._events.are_written
        connection = Connection(sock, session, self._peers, events.emit, written, events.prepare, recording, journal)
        self._give_control(vm, connection, device)
        if journal.goes_on:
            recording.resume()
            events.resume(connection.peer_uid)
        else:
            recording.begin(connection.peer_pid)
            events.begin(connection.peer_uid, connection.peer_pid, connection.control.name)
        reason = "daemon stops"
        try:
            reason = await connection.run()
        except asyncio.CancelledError:
            if not self._stops:
                raise
        except Exception:
            # A fault of the daemon ends one virtual machine's session only.
            log.exception("vm %d: internal error", vm)
            reason = "internal error"
        finally:
            self._take_control(vm)
            if journal.is_left:
                events.leave()
                journal.left_here()
            else:
                recording.end(reason)
                self._tell_end(vm, reason, connection.metrics, events)
                journal.ended(reason)

    def _tell_end(self, vm: int, reason: str, metrics: VmMetrics, events: SessionEvents) -> None:
        events.end(
            reason=reason,
            reports=metrics.reports,
            reported_bytes=metrics.reported_bytes,
            discarded_bytes=metrics.discarded_bytes,
            refused=dict(metrics.refused),
        )
        if events.audible:
            log.info("vm %d disconnected: %s", vm, reason)
            self.notices.emit("VM_DISCONNECTED", {"vm": vm, "reason": reason})

    def _give_control(self, vm: int, connection: Connection, device: DeviceOptions) -> None:
        vm_control = self._vms[vm] = connection.control
        looked_up = guest_name(self._options.name_from, connection.peer_pid, device.socket_name)
        vm_control.name = device.name or looked_up
        vm_control.state_memory(device.guest_memory, device.guest_reserve)
        vm_control.set_statistics_interval(device.statistics_interval)
        if self._options.control_path is not None:
            vm_control.notices.tell = lambda name, data: self.notices.emit(name, {"vm": vm, **data})
        vm_control.on_balloon_change = lambda actual: self.notices.balloon_changed(
            vm, logical_size(vm_control.info().guest_bytes, actual)
        )

    def _take_control(self, vm: int) -> None:
        del self._vms[vm]
        self.notices.forget(vm)

    async def finish(self) -> None:
        """End every session, and serve no more."""
        self._stops = True
        self._peers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._session_limit.flush()
        self._executor.shutdown(wait=False, cancel_futures=True)  # a worker that is held up is not waited for


def _record(vm: int, write: Callable[[Record], None]) -> SessionRecording:
    from host.recording.recorded_session import RecordedSession  # late: few are recorded, and it takes long to load

    return RecordedSession(vm, write)


def new_session(device: DeviceOptions) -> Session:
    """Return the session of a guest that finds ``device``."""
    # A driver may have seen command ids of an earlier daemon, and ignores an id equal to the last one it saw.
    hinting = FreePageHinting(last_id=COMMAND_ID_FIRST + secrets.randbelow(COMMAND_IDS))
    balloon = VirtioBalloon(
        config=BalloonConfig(num_pages=device.balloon_pages),
        discard=device.discard,
        hinting=hinting,
        personality=PERSONALITIES[device.personality].offering(device.features),
    )
    in_band = feature_mask(ProtocolFeature.INBAND_NOTIFICATIONS)
    return Session(
        offered=device.features if CAN_LOG else device.features & ~LOG_ALL,
        balloon=balloon,
        offered_protocol_features=OFFERED_PROTOCOL_FEATURES & (~0 if device.in_band else ~in_band),
        queue_numbers=QueueNumbers.named(device.queue_numbers),
    )
