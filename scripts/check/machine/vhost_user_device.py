"""A balloon device at a vhost-user socket, and the machine that plays its front-end."""

import contextlib
import os
import select
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from guest.vhost_user.frontend import WANTED_PROTOCOL_FEATURES, Call, Frontend, QueueSetup
from host.qmp.qmp_client import CommandError, QmpClient
from protocol.errors import VhostUserError
from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.packed_ring import FRESH_BASE
from protocol.ring_formats import RingLayout
from protocol.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Channel, Message, MessageReader
from protocol.vhost_user_payloads import DeviceConfig, Payload
from protocol.virtio import DeviceStatus, feature_mask
from protocol.virtio_balloon import BalloonQueue, QueueDialect, queue_numbers
from scripts.check.machine.connection import FrontendConnection
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import QUEUE_SIZE, WANTED, Device, Machine, accepted
from scripts.check.machine.memory_file import MemoryFile
from scripts.check.recording.check_recording import CheckRecording
from scripts.check.recording.recorder import Recorder
from scripts.check.verdict import Failed, HungUpError, TargetError, skip

GUEST_BASE: Final = 0x1_4000_0000
"""Guest address of the memory: neither zero nor equal to its user address, so that a mix-up is noticed."""

USER_BASE: Final = 0x7F12_3456_0000

NOT_THE_BALLOONS: Final = feature_mask(*range(9, 24))
"""Feature bits of a device type that no balloon is known to offer (bit 8 is crosvm's working set)."""

_PROTOCOL_FEATURES: Final = WANTED_PROTOCOL_FEATURES | feature_mask(
    ProtocolFeature.RESET_DEVICE, ProtocolFeature.STATUS
)


class VhostUserMachine(Machine):
    """A session with a back-end. ``connection`` can send anything, ``frontend`` knows what was negotiated."""

    def __init__(
        self,
        connection: FrontendConnection,
        frontend: Frontend,
        features: int,
        layouts: dict[int, RingLayout],
        kinds: Mapping[int, BalloonQueue],
        memory: MemoryFile,
    ) -> None:
        super().__init__(memory, GUEST_BASE, features)
        self.connection = connection
        self.frontend = frontend
        self.regions: Sequence[MemoryRegion] = (region_at(0, self.memory.size, GUEST_BASE),)
        """The memory table, each region in the memory file. Rings have to stay where they are: at :data:`GUEST_BASE`
        and their offset."""
        self._descriptors: list[int] = []
        self._bases: dict[int, int] = {}
        self._kick_of: dict[int, int] = {}
        self._call_of: dict[int, int] = {}
        recorder = connection.recorder
        for index, layout in layouts.items():
            self._kick_of[index], self._call_of[index] = self._eventfd(), self._eventfd()
            self.queues[index] = DriverQueue(
                self.memory,
                GUEST_BASE,
                index,
                kinds.get(index),
                layout,
                features,
                send_kick=_writer(self._kick_of[index], index, recorder),
                take_interrupt=_taker(self._call_of[index], index, recorder),
                recorder=recorder,
            )
        self._open_channel()

    def _open_channel(self) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._requests = MessageReader(Channel.BACKEND_REQUESTS)
        with theirs:
            self.connection.perform(self.frontend.set_backend_channel(theirs.fileno()))

    def disconnect(self) -> None:
        """End the session without a word; memory and rings stay."""
        self.connection.close()
        self._channel.close()

    def go_on_with(self, connection: FrontendConnection, frontend: Frontend) -> None:
        """Continue in a session that was negotiated, each ring at the place of its oldest buffer that did not come
        back: with a device that uses buffers in order, that is all which a front-end knows after its back-end has gone.
        """
        self.connection, self.frontend = connection, frontend
        self._open_channel()
        self.set_memory()
        for index, queue in self.queues.items():
            self.start(index, queue.driver.oldest)
        self.connection.perform(self.frontend.driver_ok())

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._descriptors.append(fd)
        return fd

    def set_memory(self) -> None:
        """Send the memory table."""
        self.connection.perform(self._memory_table())

    def _memory_table(self) -> Generator[Call, Payload, None]:
        return self.frontend.set_memory(tuple(self.regions), (self.memory.fd,) * len(self.regions))

    def send(self, request: FrontendRequest, payload: Payload, fds: Sequence[int] = ()) -> bool:
        """Send a message that has no reply of its own; return False if the back-end says that it refused it."""
        if self.frontend.has(ProtocolFeature.REPLY_ACK):
            return self.connection.ask(request, payload, fds) == 0
        self.connection.request(request, payload, fds)
        self.barrier()
        return True

    def setup(self, index: int) -> QueueSetup:
        """Return how a queue is announced."""
        queue = self.queues[index]
        descriptor, driver, device = (UserAddress(USER_BASE + queue.place + at) for at in queue.layout.offsets)
        return QueueSetup(
            size=queue.layout.size,
            descriptor=descriptor,
            available=driver,
            used=device,
            kick=self._kick_of[index],
            call=self._call_of[index],
        )

    def start(self, index: int, base: int | None = None) -> None:
        """Set a queue up and have it served from ``base``, from the beginning of a fresh ring without one."""
        if base is None:
            base = FRESH_BASE if self.queues[index].layout.packed else 0
        self.connection.perform(self.frontend.start_queue(index, self.setup(index), base))
        self.queues[index].note_started(base)

    def track_inflight(self) -> None:
        """Have the back-end record the buffers that it has taken, before the queues are started."""
        sizes = [queue.layout.size for queue in self.queues.values()]
        area = self.connection.perform(self.frontend.get_inflight(max(self.queues) + 1, max(sizes)))
        (fd,) = self.connection.fds
        self.connection.perform(self.frontend.set_inflight(area, fd))

    def stop(self, index: int, *, drain: bool = True) -> int:
        """Stop a queue and return its base. Without ``drain`` the back-end does not finish what it has in hand."""
        base = self.connection.perform(self.frontend.stop_queue(index, drain=drain))
        if self.connection.recorder is not None:
            self.connection.recorder.ring_stopped(index, base)
        return base

    def pause(self) -> None:
        """Stop all queues."""
        self._bases = {index: self.stop(index) for index in self.queues}

    def go_on(self) -> None:
        """Start all queues where :meth:`pause` stopped them."""
        for index, base in self._bases.items():
            self.start(index, base)

    def begin_again(self) -> None:
        """Reset the device and bring it up once more on this connection."""
        self.reset()
        for queue in self.queues.values():
            queue.renew()
        self.connection.perform(self.frontend.accept(self.features))
        self.run()

    def run(self) -> None:
        """Send the memory, start all queues, and say DRIVER_OK."""
        bases = {index: FRESH_BASE if queue.layout.packed else 0 for index, queue in self.queues.items()}
        starts = [self.frontend.start_queue(index, self.setup(index), base) for index, base in bases.items()]
        self.connection.perform_at_once([self._memory_table(), *starts, self.frontend.driver_ok()])
        for index, base in bases.items():
            self.queues[index].note_started(base)

    def wait_for_interrupt(self, index: int, seconds: float) -> bool:
        """Return whether a queue's interrupt comes within ``seconds``; the processor is left to others meanwhile."""
        poll = select.poll()
        poll.register(self._call_of[index], select.POLLIN)
        return bool(poll.poll(seconds * 1000)) and self.queues[index].take_interrupt()

    def read_config(self, offset: int, length: int) -> bytes:
        """Return bytes of the configuration space."""
        request = DeviceConfig(offset=offset, flags=0, data=bytes(length))
        answer = self.connection.query(FrontendRequest.GET_CONFIG, request)
        if not isinstance(answer, DeviceConfig):
            raise Failed(f"GET_CONFIG of {length} bytes at {offset} was refused", "G-12")
        if len(answer.data) != length:
            raise Failed(f"GET_CONFIG of {length} bytes at {offset} was answered with {len(answer.data)}", "G-12")
        return answer.data

    def write_config(self, offset: int, data: bytes) -> None:
        """Write bytes of the configuration space."""
        self.connection.perform(self.frontend.set_config(offset, data))

    def config_changed(self) -> bool:
        """Return whether the back-end sent CONFIG_CHANGE_MSG since this was last called."""
        changed = False
        with contextlib.suppress(BlockingIOError):
            while data := self._channel.recv(4096):
                if self.connection.recorder is not None:
                    self.connection.recorder.received(data, on_channel=True)
                self._requests.feed(data)
        while (message := self._requests.next_message()) is not None:
            changed |= isinstance(message, Message) and message.request is BackendRequest.CONFIG_CHANGE_MSG
        return changed

    def close_channel(self) -> None:
        """Close our end of the back-end's channel."""
        self._channel.close()

    def barrier(self) -> None:
        """Return when every message was handled."""
        self.connection.number(FrontendRequest.GET_FEATURES)

    def reset(self) -> None:
        """Reset the device, or stop its rings where the back-end has no message for that."""
        self.connection.perform(self.frontend.reset(len(self.queues)))

    def bring_up_again(self) -> None:
        """Bring the device up after a reset, with fresh rings and the same features, in the same session."""
        for queue in self.queues.values():
            queue.renew()
        self.connection.perform(self.frontend.accept(self.features))
        self.run()

    def needs_reset(self) -> bool:
        """Return whether the device status says so; NOT EXERCISED without the protocol feature STATUS."""
        if not self.frontend.has(ProtocolFeature.STATUS):
            skip("the back-end has no device status")
        return bool(self.connection.number(FrontendRequest.GET_STATUS) & DeviceStatus.DEVICE_NEEDS_RESET)

    def close(self) -> None:
        """Disconnect and release everything."""
        self.connection.close()
        self._channel.close()
        for queue in self.queues.values():
            queue.close()
        for fd in self._descriptors:
            os.close(fd)
        self.memory.close()


def region_at(offset: int, size: int, guest_address: int) -> MemoryRegion:
    """Return the region of ``size`` bytes at ``offset`` in the memory file that is at ``guest_address``."""
    return MemoryRegion(
        guest_address=GuestAddress(guest_address),
        size=size,
        user_address=UserAddress(USER_BASE + offset),
        mmap_offset=offset,
    )


def _writer(fd: int, index: int, recorder: Recorder | None) -> Callable[[], None]:
    def kick() -> None:
        if recorder is not None:
            recorder.kicked(index)
        os.eventfd_write(fd, 1)

    return kick


def _taker(fd: int, index: int, recorder: Recorder | None) -> Callable[[], bool]:
    def take() -> bool:
        try:
            called = os.eventfd_read(fd) > 0
        except BlockingIOError:
            return False
        if called and recorder is not None:
            recorder.called(index)
        return called

    return take


class VhostUserDevice(Device):
    """The balloon of a vhost-user back-end that listens at ``path``.

    Raises:
        TargetError: the back-end cannot be reached, does not answer, or is no balloon.
    """

    def __init__(self, path: Path, qmp: Path | None = None, recording: CheckRecording | None = None) -> None:
        self.path = path
        self._qmp = qmp
        self.name = f"the back-end at {path}"
        self._recording = recording
        try:
            with contextlib.closing(self.connect()) as connection:
                self.offered = connection.perform(Frontend().offer())
        except (VhostUserError, HungUpError, Failed) as error:
            raise TargetError(f"{path}: {error}") from error
        if foreign := self.offered & NOT_THE_BALLOONS:
            bit = foreign.bit_length() - 1
            raise TargetError(f"{path}: the back-end offers feature bit {bit}, which no balloon has (see --generic)")

    def connect(self) -> FrontendConnection:
        """Return a fresh connection."""
        return FrontendConnection(self.path, self._recording)

    def check_reachable(self) -> None:
        """Ask for the features on a connection of its own, which is not recorded."""
        with contextlib.closing(FrontendConnection(self.path)) as connection:
            try:
                connection.request(FrontendRequest.GET_FEATURES)
                connection.raw_reply()
            except (HungUpError, Failed) as error:
                raise TargetError(f"{self.path}: GET_FEATURES: {error}") from error

    def machine(
        self,
        *,
        wanted: int = WANTED,
        packed: bool = False,
        size: int = QUEUE_SIZE,
        dialect: QueueDialect = QueueDialect.NEGOTIATED,
        run: bool = True,
        uninvited: int = 0,
        memory: MemoryFile | None = None,
        also: int = 0,
    ) -> VhostUserMachine:
        """Bring the device up: see :meth:`Device.machine`. It has ``memory``, which is closed with the machine.
        ``also`` are protocol features that are negotiated too, where they are offered."""
        features = accepted(self.offered, wanted, packed=packed)
        kinds = queue_numbers(dialect, negotiated=features | uninvited & self.offered, offered=self.offered)
        with contextlib.ExitStack() as unwind:
            connection, frontend = self._session(features, also)
            unwind.callback(connection.close)
            layouts = {index: RingLayout(size, packed) for index in sorted(kinds)}
            machine = VhostUserMachine(connection, frontend, features, layouts, kinds, memory or MemoryFile())
            unwind.pop_all()
        if run:
            machine.run()
        return machine

    def _session(self, features: int, also: int = 0) -> tuple[FrontendConnection, Frontend]:
        # A new connection on which features were accepted.
        connection, frontend = self.connect(), Frontend(_PROTOCOL_FEATURES | also)
        with contextlib.ExitStack() as unwind:
            unwind.callback(connection.close)
            connection.perform(frontend.offer())
            connection.perform(frontend.accept(features))
            unwind.pop_all()
        return connection, frontend

    def reconnect(self, machine: VhostUserMachine) -> None:
        """Give a machine that was disconnected a new session: see :meth:`VhostUserMachine.go_on_with`."""
        machine.go_on_with(*self._session(machine.features))

    def resize(self, machine: Machine, pages: int) -> None:
        """Ask for a balloon of ``pages`` by the QMP command ``balloon``, whose value is what the machine keeps."""
        if self._qmp is None:
            super().resize(machine, pages)
            return
        with QmpClient(self._qmp) as client:
            client.command("balloon", value=machine.memory.size - pages * PAGE_SIZE)

    def pause(self, machine: Machine) -> None:
        """Stop the machine's queues, as QEMU does before it stops."""
        assert isinstance(machine, VhostUserMachine)
        machine.pause()

    def go_on(self, machine: Machine) -> None:
        """Start the machine's queues where they were stopped."""
        assert isinstance(machine, VhostUserMachine)
        machine.go_on()

    @contextlib.contextmanager
    def hint_round(self, machine: Machine) -> Iterator[None]:
        """Have the device ask for hints by this daemon's command ``reclaim``, which ends with the round."""
        if self._qmp is None:
            skip("the target gives no way to begin a round of hints (see --qmp)")
        with QmpClient(self._qmp) as client, ThreadPoolExecutor(1) as pool:
            try:
                known = {one["name"] for one in client.command("query-commands")}
            except CommandError:
                known = set()
            if "reclaim" not in known:
                skip("the control socket has no command that begins a round of hints")
            running = pool.submit(client.command, "reclaim", method="hint")
            try:
                yield
            finally:
                running.result()
