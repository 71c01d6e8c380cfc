"""The two ends of a measurement: the daemon as a process of its own, and a machine reduced to its balloon driver.

The machine speaks real vhost-user and drives real rings, but it waits in blocking system calls and does nothing else,
so that what is measured is the daemon and not the machine.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, TypeVar

from guest.balloon.virtio_balloon import WANTED, accept_features
from guest.ram import GuestRam
from guest.vhost_user.frontend import Call, Frontend, QueueSetup
from guest.virtqueue.ring_memory import RING_FEATURES, RingMemory, RingOptions
from guest.virtqueue.virtqueue import Buffer, IndirectTables
from guest.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import SessionEnded, VhostUserError
from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.ring_formats import Ring
from protocol.vhost_user_codec import BadMessage, Channel, MessageReader
from protocol.vhost_user_payloads import Payload
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature, BalloonQueue, queue_order
from scripts.benchmarks.figures import BenchmarkError
from scripts.benchmarks.process import PATIENCE, end_process
from scripts.child_processes import module_environment

_USER_BASE: Final = 0x7F00_0000_0000
_WANTED: Final = WANTED & ~RING_FEATURES & ~feature_mask(BalloonFeature.STATS_VQ, BalloonFeature.FREE_PAGE_HINT)
"""Reporting only: it needs no further queue."""

Result = TypeVar("Result")


class Daemon:
    """``python -m host`` with ``options`` on a socket of its own; ends with the ``with`` block."""

    def __init__(self, directory: Path, *options: str) -> None:
        directory.mkdir(exist_ok=True)
        self.socket_path = directory / "balloon.sock"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "host", "--socket-path", str(self.socket_path), *options],
            env=module_environment(),
            text=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> "Daemon":
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(os.fspath(self.socket_path))
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                end_process(self._process)
                raise BenchmarkError("the daemon does not start")
            time.sleep(0.01)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_process(self._process)


class ReportingRing(NamedTuple):
    """The split virtqueue of reports for another process: the memory's file and its length, the places of the
    available and the used ring in it, the size, and the descriptors of kick and call."""

    ram_fd: int
    ram_size: int
    available: int
    used: int
    size: int
    kick_fd: int
    call_fd: int

    @property
    def fds(self) -> tuple[int, int, int]:
        """The descriptors among them."""
        return self.ram_fd, self.kick_fd, self.call_fd


class Machine:
    """A virtual machine of ``size`` bytes connected to the daemon at ``socket_path``, its three queues running.

    Guest addresses from 0 to ``size`` are free for ranges to report; the queues follow, each with the layout of
    ``rings``.

    Raises:
        SessionEnded: the daemon is not there, or went away.
        VhostUserError: the daemon refused something.
    """

    def __init__(self, socket_path: Path, size: int, rings: RingOptions | None = None) -> None:
        self.size = size
        self._options = rings or RingOptions()
        self._queue_bytes = -(-RingMemory(0, self._options).bytes // PAGE_SIZE) * PAGE_SIZE
        self.ram = GuestRam(size + len(BalloonQueue) * self._queue_bytes)
        self._frontend = Frontend()
        self._reader = MessageReader(Channel.BACKEND_REPLIES)
        self._rings: list[Ring] = []
        self._eventfds: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        self._poll = select.poll()
        try:
            self._socket.connect(os.fspath(socket_path))
            self._bring_up()
        except OSError as error:
            self.close()
            raise SessionEnded(f"no daemon at {socket_path}: {error}") from error
        except BaseException:
            self.close()
            raise
        self._poll.register(self._call_fd, select.POLLIN)
        self._poll.register(self._socket, select.POLLIN)

    # -- control plane ----------------------------------------------------------------------------------------------

    def _bring_up(self) -> None:
        offered = self._perform(self._frontend.offer())
        if missing := self._options.required & ~offered:
            raise BenchmarkError(f"the daemon does not offer the feature bits {missing:#x}")
        features = accept_features(offered, wanted=_WANTED | self._options.features)
        self._perform(self._frontend.accept(features))
        region = MemoryRegion(
            guest_address=GuestAddress(0), size=self.ram.size, user_address=UserAddress(_USER_BASE), mmap_offset=0
        )
        self._perform(self._frontend.set_memory((region,), (self.ram.fd,)))
        queues = queue_order(features)
        if queues[-1] is not BalloonQueue.REPORTING:
            raise BenchmarkError("the daemon does not offer free page reporting")
        for index in range(len(queues)):
            self._start_queue(index, features)

    def _start_queue(self, index: int, features: int) -> None:
        memory = RingMemory(self.size + index * self._queue_bytes, self._options)
        ring = memory.open(self.ram.view)
        tables = IndirectTables(addresses=memory.tables, capacity=memory.table_capacity)
        kick, call = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
        self._rings.append(ring)
        self._eventfds += kick, call
        setup = QueueSetup(
            size=self._options.size,
            descriptor=UserAddress(_USER_BASE + memory.descriptor),
            available=UserAddress(_USER_BASE + memory.available),
            used=UserAddress(_USER_BASE + memory.used),
            kick=kick,
            call=call,
        )
        self._perform(self._frontend.start_queue(index, setup))
        # The reporting queue comes last and is the one that is driven.
        self._kick_fd, self._call_fd = kick, call
        self._reporting = memory
        self._queue = open_virtqueue(
            ring,
            event_idx=has_feature(features, FeatureBit.RING_EVENT_IDX),
            tables=tables if has_feature(features, FeatureBit.RING_INDIRECT_DESC) else None,
            write_guest=self.ram.write,
            in_order=has_feature(features, FeatureBit.IN_ORDER),
        )

    def _perform(self, calls: Generator[Call, Payload, Result]) -> Result:
        try:
            call = next(calls)
            while True:
                call = calls.send(self._exchange(call))
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def _exchange(self, call: Call) -> Payload:
        sent = socket.send_fds(self._socket, [call.data], call.fds)
        self._socket.sendall(call.data[sent:])
        if not call.reply_expected:
            return None
        while (message := self._reader.next_message()) is None:
            data = self._socket.recv(self._reader.bytes_desired())
            if not data:
                raise SessionEnded(f"the daemon closed the connection during {call.request.name}")
            self._reader.feed(data)
        if isinstance(message, BadMessage) or message.request is not call.request:
            raise VhostUserError(f"the daemon's answer to {call.request.name} is invalid")
        return message.payload

    @property
    def reporting_ring(self) -> ReportingRing:
        """The queue of reports."""
        memory = self._reporting
        rings = memory.available, memory.used, self._options.size
        return ReportingRing(self.ram.fd, self.ram.size, *rings, self._kick_fd, self._call_fd)

    # -- data plane -------------------------------------------------------------------------------------------------

    def touch(self, size: int | None = None) -> None:
        """Back every page of the first ``size`` bytes (None: all) with memory, as after use by the guest."""
        self.ram.fill(0, (self.size if size is None else size) // PAGE_SIZE, 1)

    def report(self, ranges: Sequence[Buffer]) -> tuple[float, float]:
        """Report ``ranges`` in one chain and wait until it is used. Return the CLOCK_MONOTONIC seconds of the moment
        before the kick and of the moment when the used entry was seen.

        Raises:
            BenchmarkError: it was not used within :data:`PATIENCE`.
        """
        queue = self._queue
        queue.add((), ranges)
        begin = time.monotonic()
        if queue.needs_kick():
            os.eventfd_write(self._kick_fd, 1)
        while queue.get_used() is None:
            if not queue.enable_interrupt():
                self._wait_for_call()
        return begin, time.monotonic()

    def _wait_for_call(self) -> None:
        ready = self._poll.poll(PATIENCE * 1000)
        if not any(fd == self._call_fd for fd, _ in ready):
            raise BenchmarkError("the daemon has died" if ready else f"a report was not served in {PATIENCE:.0f} s")
        os.eventfd_read(self._call_fd)

    def report_all(self, range_bytes: int, ranges_per_report: int, stride: int = 1) -> float:
        """Report the whole memory in ranges of ``range_bytes``, one report at a time as a real driver does. Return the
        seconds from before the first report is written into the ring until the last is used.

        With a ``stride`` every so many ranges come first, then those after these, and so on: no two of a report touch.

        Raises:
            BenchmarkError: the memory was not given back.
        """
        step = range_bytes * stride
        addresses = [address for first in range(0, step, range_bytes) for address in range(first, self.size, step)]
        begin = time.monotonic()
        for at in range(0, len(addresses), ranges_per_report):
            self.report([(address, range_bytes) for address in addresses[at : at + ranges_per_report]])
        seconds = time.monotonic() - begin
        self.check_empty()
        return seconds

    def check_empty(self) -> None:
        """Raise :class:`BenchmarkError` unless only the rings occupy memory."""
        rings = self.ram.size - self.size
        if self.ram.resident_bytes > rings:
            raise BenchmarkError(f"{self.ram.resident_bytes - rings} bytes that were reported are still there")

    def close(self) -> None:
        """Disconnect and release everything."""
        self._socket.close()
        for fd in self._eventfds:
            os.close(fd)
        for ring in self._rings:
            ring.release()
        self.ram.close()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
