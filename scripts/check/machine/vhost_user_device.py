"""A balloon device at a vhost-user socket, and the machine that plays its front-end."""

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from guest.vhost_user.frontend import WANTED_PROTOCOL_FEATURES, Frontend, QueueSetup
from host.balloon.free_page_hinting import COMMAND_ID_DONE
from host.qmp.qmp_client import QmpClient
from protocol.balloon_config import BalloonConfig
from protocol.errors import BalloonError, VhostUserError
from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.ring_formats import RingLayout
from protocol.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Channel, Message, MessageReader
from protocol.vhost_user_payloads import DeviceConfig
from protocol.virtio import DeviceStatus, feature_mask
from protocol.virtio_balloon import CONFIG_SIZE, QueueDialect, queue_numbers
from scripts.check.machine.connection import FrontendConnection, HungUpError, Observer
from scripts.check.machine.deadline import DEADLINE, becomes_true
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.machine import QUEUE_SIZE, WANTED, Device, Machine, accepted
from scripts.check.machine.memory_file import MemoryFile
from scripts.check.verdict import Failed, TargetError, skip

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
        dialect: QueueDialect,
        offered: int,
        memory: MemoryFile | None = None,
    ) -> None:
        super().__init__(memory or MemoryFile(), GUEST_BASE, features)
        self.connection = connection
        self.frontend = frontend
        self.region = MemoryRegion(
            guest_address=GuestAddress(GUEST_BASE),
            size=self.memory.size,
            user_address=UserAddress(USER_BASE),
            mmap_offset=0,
        )
        self._descriptors: list[int] = []
        kinds = queue_numbers(dialect, negotiated=features, offered=offered)
        self._kick_of: dict[int, int] = {}
        self._call_of: dict[int, int] = {}
        for index, layout in layouts.items():
            self._kick_of[index], self._call_of[index] = self._eventfd(), self._eventfd()
            self.queues[index] = DriverQueue(
                self.memory,
                GUEST_BASE,
                index,
                kinds.get(index),
                layout,
                features,
                send_kick=_writer(self._kick_of[index]),
                take_interrupt=_taker(self._call_of[index]),
            )
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._requests = MessageReader(Channel.BACKEND_REQUESTS)
        with theirs:
            connection.perform(frontend.set_backend_channel(theirs.fileno()))

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._descriptors.append(fd)
        return fd

    def set_memory(self) -> None:
        """Send the memory table."""
        self.connection.perform(self.frontend.set_memory((self.region,), (self.memory.fd,)))

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

    def start(self, index: int, base: int = 0) -> None:
        """Set a queue up and have it served."""
        self.connection.perform(self.frontend.start_queue(index, self.setup(index), base))

    def stop(self, index: int) -> int:
        """Stop a queue and return its base."""
        return self.connection.perform(self.frontend.stop_queue(index))

    def run(self) -> None:
        """Send the memory, start all queues, and say DRIVER_OK."""
        self.set_memory()
        for index in self.queues:
            self.start(index)
        self.connection.perform(self.frontend.driver_ok())

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
            raise Failed(f"GET_CONFIG of {length} bytes at {offset} was refused")
        if len(answer.data) != length:
            raise Failed(f"GET_CONFIG of {length} bytes at {offset} was answered with {len(answer.data)}")
        return answer.data

    def write_config(self, offset: int, data: bytes) -> None:
        """Write bytes of the configuration space."""
        self.connection.perform(self.frontend.set_config(offset, data))

    def config_changed(self) -> bool:
        """Return whether the back-end sent CONFIG_CHANGE_MSG since this was last called."""
        changed = False
        with contextlib.suppress(BlockingIOError):
            while data := self._channel.recv(4096):
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


def _writer(fd: int) -> Callable[[], None]:
    return lambda: os.eventfd_write(fd, 1)


def _taker(fd: int) -> Callable[[], bool]:
    def take() -> bool:
        try:
            return os.eventfd_read(fd) > 0
        except BlockingIOError:
            return False

    return take


class VhostUserDevice(Device):
    """The balloon of a vhost-user back-end that listens at ``path``.

    Raises:
        TargetError: the back-end cannot be reached, does not answer, or is no balloon.
    """

    def __init__(self, path: Path, observe: Observer | None = None, qmp: Path | None = None) -> None:
        self.path = path
        self._qmp = qmp
        self.name = f"the back-end at {path}"
        self._observe = observe
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
        return FrontendConnection(self.path, self._observe)

    def machine(
        self,
        *,
        wanted: int = WANTED,
        packed: bool = False,
        size: int = QUEUE_SIZE,
        dialect: QueueDialect = QueueDialect.NEGOTIATED,
        run: bool = True,
        memory: MemoryFile | None = None,
    ) -> VhostUserMachine:
        """Bring the device up: see :meth:`Device.machine`. A ``memory`` of the caller's is closed with the machine."""
        features = accepted(self.offered, wanted, packed=packed)
        numbers = queue_numbers(dialect, negotiated=features, offered=self.offered)
        connection = self.connect()
        with contextlib.ExitStack() as unwind:
            unwind.callback(connection.close)
            frontend = Frontend(_PROTOCOL_FEATURES)
            connection.perform(frontend.offer())
            connection.perform(frontend.accept(features))
            layouts = {index: RingLayout(size, packed) for index in sorted(numbers)}
            machine = VhostUserMachine(connection, frontend, features, layouts, dialect, self.offered, memory)
            unwind.pop_all()
        if run:
            machine.run()
        return machine

    def resize(self, machine: Machine, pages: int) -> None:
        """Ask for a balloon of ``pages`` by the QMP command ``balloon``, whose value is what the machine keeps."""
        if self._qmp is None:
            super().resize(machine, pages)
            return
        with QmpClient(self._qmp) as client:
            client.command("balloon", value=machine.memory.size - pages * PAGE_SIZE)

    @contextlib.contextmanager
    def hinting_round(self, machine: Machine) -> Iterator[int]:
        """Begin a round by the daemon's command ``reclaim``, which is answered when the round is over."""
        if self._qmp is None:
            with super().hinting_round(machine) as command_id:
                yield command_id
            return

        def reclaim(client: QmpClient) -> None:
            with contextlib.suppress(BalloonError):
                client.command("reclaim", method="hint")

        def current() -> int:
            return BalloonConfig.parse(machine.read_config(0, CONFIG_SIZE)).free_page_hint_cmd_id

        with QmpClient(self._qmp, answer_seconds=DEADLINE) as client:
            thread = threading.Thread(target=reclaim, args=(client,))
            thread.start()
            try:
                if not becomes_true(lambda: current() > COMMAND_ID_DONE or not thread.is_alive()):
                    raise Failed(f"a round of hints was asked for, and the command id stays {current()}")
                if current() <= COMMAND_ID_DONE:
                    skip("the control socket has no command that begins a round of hints")
                yield current()
            finally:
                thread.join()
