"""One virtual machine's connection: reads its messages, performs the actions of :mod:`host.vhost_user.backend`, owns
all its file descriptors, and releases all of them when the front-end goes away, at any point of a session.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from functools import partial

from host.backend_channel import BackendChannel
from host.balloon.virtio_balloon import VirtioBalloon
from host.control.vm_control import VmControl
from host.events.metrics import VmMetrics
from host.events.queue_events import Prepare
from host.events.queue_record import QueueRecord
from host.events.vm_events import Emit, VmEvents
from host.front_end_process import FrontEndProcess, LeftBehind
from host.inflight.ring_records import RingRecords
from host.memory.guest_memory import GuestMemory, RegionFile
from host.message_channel import MessageChannel
from host.migration.device_state import DeviceState
from host.migration.migration import Migration
from host.migration.travelling_state import build_state, restore_state
from host.peers.peers import PeerLimitError, Peers
from host.recording.session_recording import NOT_RECORDED, SessionRecording
from host.ring.device_facts import DeviceFacts, device_facts
from host.ring.queue_files import QueueFiles
from host.ring.ring_service import RingService
from host.ring.turn import ServedChain, Turn
from host.session_release import RELEASE_PATIENCE, STOP_PATIENCE, wait_for_release
from host.supervision.journal import end_recovery
from host.supervision.session_journal import NOT_JOURNALED, SessionJournal
from host.takeover import SessionParts
from host.vhost_user import config_change, ring_control
from host.vhost_user.actions import (
    Action,
    ActionResult,
    AddRegion,
    DropRegion,
    EmitEvent,
    ForgetDriver,
    KickRing,
    LogRing,
    ReplaceMemory,
    SendBackendRequest,
    SetBackendChannel,
    SetVringFile,
    StartRing,
    StoppedRing,
    StopRing,
)
from host.vhost_user.backend import Reply, handle
from host.vhost_user.device_setup import DeviceSetup
from host.vhost_user.session import MustClose, Session
from protocol.errors import FramingError, SessionEnded, VhostUserError
from protocol.vhost_user import BackendRequest, FrontendRequest
from protocol.vhost_user_codec import BadMessage, Message, build_message
from protocol.vhost_user_payloads import VringState
from protocol.virtio_balloon import PFN_SHIFT, QUEUES_MAX, BalloonQueue


class Connection:
    """Runs one session over a connected socket, which it owns. For ``emit``, ``are_written`` and ``prepare`` see
    :class:`host.events.vm_events.VmEvents`."""

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        peers: Peers,
        emit: Emit,
        are_written: Callable[[], bool] = lambda: True,
        prepare: Prepare | None = None,
        recording: SessionRecording = NOT_RECORDED,
        journal: SessionJournal = NOT_JOURNALED,
    ) -> None:
        process = FrontEndProcess(sock)
        self.peer_pid, self.peer_uid = process.pid, process.uid
        self._session = session
        self._peers = peers
        self._member = member = peers.join(peers.identify(process.uid, process.pid))
        self.emit = emit
        self._helpers = helpers = member.helpers
        self._recording = recording
        self._messages = MessageChannel(sock, member, recording, journal)
        self._journal = journal
        self._memory = GuestMemory(helpers.close)
        self._migration = Migration(self._take_state, self._restore_state, helpers)
        self._files = [
            QueueFiles(
                relieve_log=self._migration.relieve, close_by=helpers.close_by, on_failure=self._on_signal_failure
            )
            for _ in range(QUEUES_MAX)
        ]
        self._services: dict[int, RingService] = {}
        self._broken: asyncio.Queue[int] = asyncio.Queue()
        self._in_hand = 0
        self._channel: BackendChannel | None = None
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._left_behind = LeftBehind(process, self._files, self._services, self._lock, helpers)
        self._disconnected: asyncio.Future[None] = self._loop.create_future()
        self.metrics = VmMetrics()
        self._broke: dict[int, str] = {}
        self.control = VmControl(self, helpers.look, journal.changed)
        self.emit = emit = self.control.notices.passing_on(emit)
        self._events = VmEvents(emit, member.may_emit, are_written, prepare)
        self._records: dict[int, QueueRecord] = {}
        self._parts = SessionParts(session, self.control, self.metrics, self._memory, self._files, self._migration)
        member.held = self._held

    def _held(self) -> int:
        # Descriptors that came with messages.
        queues = sum(files.count for files in self._files)
        channel = self._channel is not None
        return self._messages.held + len(self._memory.files) + queues + self._migration.held + channel + self._in_hand

    @property
    def balloon(self) -> VirtioBalloon:
        """The device."""
        return self._session.balloon

    @property
    def memory_bytes(self) -> int:
        """Bytes of all memory regions."""
        return self._memory.table.total_bytes

    @property
    def region_files(self) -> list[RegionFile]:
        """The files of all memory regions."""
        return self._memory.files

    @property
    def driver_ready(self) -> bool:
        """Whether a driver is in control of the device."""
        return self._session.has_driver

    @property
    def setup(self) -> DeviceSetup:
        """How the driver has set the device up."""
        session = self._session
        services = [service for _, service in sorted(self._services.items())]
        kicks = {service.queue: service.kick_method for service in services if service.queue is not None}
        return DeviceSetup(session.ring_format, session.queue_numbers.dialect, kicks)

    @property
    def device_facts(self) -> DeviceFacts:
        """How far the driver has come with the device."""
        return device_facts(self._session, self._services, self._broke)

    def queue(self, queue: BalloonQueue) -> RingService | None:
        """Return the service of ``queue`` if it runs."""
        return next((service for service in self._services.values() if service.queue is queue), None)

    async def run(self) -> str:
        """Serve the session to its end and release everything. Return the reason of the end, one line."""
        parts = (self._serve_messages(), self._retire_broken_rings(), self._left_behind.empty())
        tasks = [asyncio.create_task(part) for part in parts]
        patience = RELEASE_PATIENCE
        try:
            ends: list[asyncio.Future[None]] = [*tasks, self._disconnected]
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done - {self._disconnected}:
                await end  # the tasks end only by an error
            return "disconnected by command"
        except (SessionEnded, FramingError, MustClose, PeerLimitError) as error:
            return str(error)
        except MemoryError:
            return "the daemon is out of memory"
        except asyncio.CancelledError:
            patience = STOP_PATIENCE
            raise
        finally:
            for task in tasks:
                task.cancel()
            release = asyncio.create_task(self._release(tasks))
            try:
                await wait_for_release(release, patience)
            except asyncio.CancelledError:
                await wait_for_release(release, STOP_PATIENCE)
                raise

    async def _serve_messages(self) -> None:
        self._peers.check_session(self._member.peer)
        if self._journal.is_kept:
            await self._take_over()
        while self._journal.may_stay(sealed=self._memory.sealed):
            await self._handle(await self._messages.next_message())
        raise SessionEnded("another worker goes on with it")

    async def _take_over(self) -> None:
        # Goes on with the session of another worker, or begins one that another worker can go on with.
        journal, files, records = self._journal.legacy() or (None, {}, {})
        self._migration.records = RingRecords(records, self._journal.record)
        if journal is not None:
            with self._events.hushed(self):
                await self._parts.take_over(journal, files, self._carry_out_again)
        message = self._messages.take_over(files)
        self._journal.begin(lambda: self._parts.write_down(self._journal, self._channel))
        if message is not None:
            await self._handle(message)
        if journal is not None:
            end_recovery(self._session, journal.standing)
            self._journal.went_on()

    async def _carry_out_again(self, message: Message | BadMessage) -> None:
        unclaimed = set(message.fds)
        try:
            async with self._lock:
                with contextlib.suppress(VhostUserError):  # it may have been refused the first time, with an effect
                    await self._drive(handle(self._session, message), unclaimed)
        finally:
            self._helpers.close(unclaimed)

    def disconnect(self) -> None:
        """End the session at any point of it. A second call does nothing."""
        if not self._disconnected.done():
            self._disconnected.set_result(None)

    async def _release(self, tasks: list[asyncio.Task[None]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._journal.leave([service.stop for service in self._services.values()])  # before what it names goes
        # From the last callback to the first, each even if others fail.
        async with contextlib.AsyncExitStack() as steps:
            steps.callback(self._member.leave)
            steps.push_async_callback(self._helpers.closed)
            steps.callback(self._messages.close)
            steps.push_async_callback(self._migration.close)
            steps.callback(self._memory.close)
            for files in self._files:
                steps.callback(files.close)
            steps.push_async_callback(self._left_behind.close)
            steps.callback(self._drop_channel)
            steps.callback(self._events.close)
            # A worker may be in the middle of a chain, and finishes it.
            for service in self._services.values():
                steps.push_async_callback(service.stop)
            steps.callback(self.control.close)

    # -- messages ----------------------------------------------------------------------------------------------------

    async def _handle(self, message: Message | BadMessage) -> None:
        unclaimed = set(message.fds)
        self._journal.begins()
        self._in_hand = len(unclaimed)
        try:
            async with self._lock:
                reply = await self._drive(handle(self._session, message), unclaimed)
            if message.request == FrontendRequest.SET_CONFIG:
                self.control.config_written()
        finally:
            self._in_hand = 0
            self._helpers.close(unclaimed)
        await self._helpers.closed()
        await self._messages.answer(reply)

    async def _drive(self, effects: Generator[Action, ActionResult, Reply | None], unclaimed: set[int]) -> Reply | None:
        answer: ActionResult = None
        try:
            action = next(effects)
            while True:
                try:
                    answer = await self._perform(action, unclaimed)
                except VhostUserError as error:
                    action = effects.throw(error)
                else:
                    action = effects.send(answer)
        except StopIteration as stop:
            reply: Reply | None = stop.value
            return reply

    # -- actions ----------------------------------------------------------------------------------------------------

    async def _perform(self, action: Action, unclaimed: set[int]) -> ActionResult:
        match action:
            case StartRing():
                await self._start_ring(action)
            case StopRing(index=index, drain=drain):
                service = self._services[index]
                base = await service.stop(drain=drain)
                self._recording.ring_stopped(index, base)
                del self._services[index]
                return StoppedRing(base, service.broken)  # it may have broken while it was being stopped
            case ReplaceMemory(table=table, fds=fds):
                self._memory.replace(table, fds)
                unclaimed.difference_update(fds)
                self._memory_changed()
            case AddRegion(table=table, fd=fd):
                self._memory.add(table, fd)
                unclaimed.discard(fd)
                self._memory_changed()
            case DropRegion(table=table, number=number):
                self._memory.drop(table, number)
                self._memory_changed()
            case SetVringFile(request=request, index=index, fd=fd):
                file = self._recording.signal_file(request, index, fd, self._helpers.close)
                self._files[index].set(request, file)
                if fd is not None:
                    unclaimed.discard(fd)
            case SetBackendChannel(fd=fd):
                self._set_channel(fd)
                unclaimed.discard(fd)
            case KickRing(index=index):
                self._services[index].kick()
            case SendBackendRequest(data=data):
                self._send_request(data)
            case EmitEvent(event=event, fields=fields):
                self._recording.remark(event, fields)
                self._events.emit_limited(event, **fields)
            case ForgetDriver():
                self.control.driver_left()
                for files in self._files:
                    files.kept = None
            case LogRing(index=index, log=log):
                self._services[index].set_on_write(self._migration.on_write(log))
            case _:
                return await self._migration.perform(action, unclaimed)
        return None

    async def _start_ring(self, action: StartRing) -> None:
        await self._migration.prepare_virtqueue(action)
        files = self._files[action.index]
        files.send_call = files.send_err = None
        if action.inband:
            state = VringState(action.index, 0)
            files.send_call = partial(self._send_request, build_message(BackendRequest.VRING_CALL, state))
            files.send_err = partial(self._send_request, build_message(BackendRequest.VRING_ERR, state))
        opened = self._recording.open_ring(action, self._memory, self._migration.open_virtqueue)
        if action.index not in self._records:
            self._records[action.index] = self._events.record(self.metrics, self._chain_served)
        member = self._member
        service = RingService(
            action,
            opened,
            files,
            self._memory,
            self.balloon,
            self.control.looking_first(member.workers),
            self._peers.works_alone,
            self._on_turn,
            self._records[action.index],
            member.large_chains,
        )
        service.start()
        self._services[action.index] = service

    def _chain_served(self, chain: ServedChain) -> None:
        self.control.chain_served(chain)
        self._journal.changed()

    def _memory_changed(self) -> None:
        table = self._memory.table
        self._events.emit_limited(
            "memory", regions=len(table.regions), bytes=table.total_bytes, sealed=self._memory.sealed
        )
        self.control.memory_changed()

    def _on_signal_failure(self, reason: str) -> None:
        # From a worker.
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(partial(self._events.emit_limited, "signal_failed", reason=reason))

    def _on_turn(self, index: int, turn: Turn) -> None:
        if turn.broken is not None:
            self._recording.ring_broke(index, str(turn.broken))
            self._events.emit_limited("queue_stopped", queue=index, reason=str(turn.broken))
            self._broke[index] = str(turn.broken)
            self._broken.put_nowait(index)

    async def _retire_broken_rings(self) -> None:
        while True:
            index = await self._broken.get()
            async with self._lock:
                # The front-end may have stopped the ring meanwhile, or set it up anew: the new ring is not broken.
                if (service := self._services.get(index)) is not None and service.broken:
                    await self._drive(ring_control.ring_broke(self._session, index), set())
                    self._journal.changed()

    # -- the state that travels -------------------------------------------------------------------------------------

    def _take_state(self) -> DeviceState:
        """Return the device's state, for the back-end at the virtual machine's destination."""
        return build_state(self.balloon, self.control, self.metrics)

    def _restore_state(self, state: DeviceState) -> None:
        """Go on from the state that the back-end at the virtual machine's source has left."""
        restore_state(state, self.balloon, self.control, self.metrics)
        self._session.state_restored()
        self._events.emit_limited(
            "state_loaded", target_bytes=state.num_pages << PFN_SHIFT, actual_bytes=state.actual << PFN_SHIFT
        )

    # -- the back-end's own requests --------------------------------------------------------------------------------

    def _set_channel(self, fd: int) -> None:
        channel = BackendChannel(fd, self._drop_channel, self._helpers, self._recording)
        self._drop_channel()
        self._channel = channel
        for index in self._services:
            if self._files[index].call is None:
                self._files[index].signal_call()  # for interrupts lost without a channel, or on the old one

    def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _send_request(self, data: bytes) -> None:
        # From any thread.
        channel = self._channel
        if channel is not None:
            channel.send(data)

    def change_config(self, **fields: int) -> None:
        """Set ``fields`` of the configuration space, and tell the driver if there is one."""
        for action in config_change.change_config(self._session, **fields):
            self._send_request(action.data)
        self._journal.changed()
