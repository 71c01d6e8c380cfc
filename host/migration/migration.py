"""One virtual machine's dirty log, inflight file and state on the move, with their descriptors."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import assert_never

from host.inflight.inflight_file import FileRegion, InflightFile, make_inflight_file
from host.inflight.inflight_virtqueue import open_tracked
from host.inflight.ring_records import RingRecords
from host.migration.device_state import DeviceState, parse_state
from host.migration.dirty_log import DirtyLog
from host.migration.state_transfer import StateTransfer
from host.peers.helpers import Helpers
from host.ring.queue_files import CallFile
from host.vhost_user.actions import (
    DropMigration,
    FinishState,
    LoadState,
    MakeInflightFile,
    MigrationAction,
    SaveState,
    SetInflightFile,
    SetLog,
    SetLogFile,
    StartRing,
)
from host.virtqueue.ring_place import RingLog
from host.virtqueue.virtqueue import DeviceVirtqueue, OnWrite, ReadGuest
from host.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VhostUserError, VirtqueueError
from protocol.ring_formats import Ring


class Migration:
    """Performs the actions of :mod:`host.vhost_user.migration_requests`, and owns what they bring.

    ``take_state`` returns the state that travels as it is, ``restore_state`` has the device go on from another.
    """

    def __init__(
        self,
        take_state: Callable[[], DeviceState],
        restore_state: Callable[[DeviceState], None],
        helpers: Helpers,
    ) -> None:
        self._take_state = take_state
        self._restore_state = restore_state
        self._helpers = helpers
        self._log_file: CallFile | None = None
        self._stream: StateTransfer | None = None
        self._transfer: asyncio.Task[bytes | None] | None = None
        self.dirty_log = DirtyLog(helpers.close_by)
        self._regions: dict[int, FileRegion] = {}
        self.inflight: InflightFile | None = None
        self.log_told: SetLog | None = None
        """The dirty log, as it was announced."""
        self.records: RingRecords | None = None
        """Where chains in flight of packed rings are noted for which the front-end keeps no inflight file, if they
        are."""

    @property
    def held(self) -> int:
        """How many descriptors there are that a front-end passed."""
        return sum(file is not None for file in (self._log_file, self._stream, self.inflight))

    async def prepare_virtqueue(self, action: StartRing) -> None:
        """Read what :meth:`open_virtqueue` needs of the inflight file, on a helper: a lock of the file may be held.

        Raises:
            VhostUserError: the inflight file cannot be read, or has no room for this ring.
        """
        if self.inflight is not None:
            region = self.inflight.region(action.index, packed=action.features.packed)
            try:
                await self._helpers.run("reading the inflight file", region.load)
            except VirtqueueError as error:
                raise VhostUserError(str(error)) from error
            self._regions[action.index] = region

    def open_virtqueue(self, action: StartRing, ring: Ring, read_guest: ReadGuest) -> DeviceVirtqueue:
        """Return the device's side of ``ring``, what it takes written to the inflight file if there is one, its writes
        noted in the dirty log if ``action`` says so.

        Raises:
            VhostUserError: the inflight file does not fit this ring, or the base is not a place in it.
        """
        if self.inflight is None and self.records is not None:
            queue = self.records.open(action, ring, read_guest)
        elif self.inflight is None:
            queue = open_virtqueue(ring, action.base, action.features, read_guest)
        else:
            region = self._regions.pop(action.index)
            queue = open_tracked(
                region,
                self.inflight.entries,
                ring,
                action.base,
                action.features,
                read_guest,
                recovers=action.recovers,
            )
        queue.on_write = self.on_write(action.log)
        return queue

    def on_write(self, log: RingLog | None) -> OnWrite | None:
        """Return what to call for each write into a ring, to mark it in the dirty log; None where writes are not
        logged."""
        if log is None:
            return None

        def mark(part: int, offset: int, length: int) -> None:
            self.dirty_log.mark(log[part] + offset, length)

        return mark

    async def perform(self, action: MigrationAction, unclaimed: set[int]) -> int | None:
        """Perform one action; what it keeps of its descriptors is taken out of ``unclaimed``.

        Raises:
            VhostUserError: it cannot be done, and nothing has changed.
        """
        match action:
            case SetLog(fd=fd, size=size, offset=offset):
                # The mapping has a descriptor of its own. On a helper: a worker that marks holds the log's lock, and
                # the front-end may hold the worker up.
                await self._helpers.run("mapping the dirty log", partial(self.dirty_log.map, fd, size, offset))
                self.log_told = action
            case SetLogFile(fd=fd):
                self._set_log_file(CallFile(fd))
                unclaimed.discard(fd)
            case MakeInflightFile(size=size):
                try:
                    return make_inflight_file(size)
                except OSError as error:
                    raise VhostUserError(f"the inflight file cannot be made: {error.strerror}") from error
            case SetInflightFile(fd=fd, told=told, packed=packed):
                file = InflightFile(fd, told, packed=packed)
                unclaimed.discard(fd)
                if self.inflight is not None:
                    self._helpers.close_by(self.inflight.close)
                self.inflight = file
            case SaveState(fd=fd):
                data = self._take_state().build()
                await self._begin(fd, data, unclaimed)
            case LoadState(fd=fd):
                await self._begin(fd, None, unclaimed)
            case FinishState():
                await self._finish()
            case DropMigration():
                await self.close()
            case _:
                assert_never(action)
        return None

    @property
    def log_call_fd(self) -> int | None:
        """The descriptor that is signalled when something was logged, if there is one."""
        return None if self._log_file is None else self._log_file.fd

    def _set_log_file(self, file: CallFile | None) -> None:
        old, self._log_file = self._log_file, file
        self.dirty_log.set_call(None if file is None else file.signal)
        if old is not None:
            self._helpers.close_by(old.close)

    def relieve(self) -> None:
        """Free a worker that the front-end blocks in the signal of the dirty log, see ``CallFile.relieve``."""
        if self._log_file is not None:
            self._log_file.relieve()

    async def _begin(self, fd: int, data: bytes | None, unclaimed: set[int]) -> None:
        stream = StateTransfer(fd, self._helpers)
        unclaimed.discard(fd)
        await self._give_up()
        self._stream = stream
        self._transfer = asyncio.create_task(_pass(stream, data))

    async def _finish(self) -> None:
        if self._transfer is None:
            raise VhostUserError("no device state was passed")
        try:
            data = await self._transfer
        finally:
            self._transfer = None
        if data is not None:
            self._restore_state(parse_state(data))

    async def _give_up(self) -> None:
        if self._transfer is not None:
            self._transfer.cancel()
            await asyncio.gather(self._transfer, return_exceptions=True)
            self._transfer = None
        if self._stream is not None:
            self._stream.close()  # a task that was cancelled before it began has not done so

    async def close(self) -> None:
        """Give everything up. No ring may run meanwhile."""
        await self._give_up()
        self._set_log_file(None)
        self.dirty_log.close()
        self.log_told = None
        if self.records is not None:
            self.records.close()
        if self.inflight is not None:
            self._helpers.close_by(self.inflight.close)
            self.inflight = None


async def _pass(stream: StateTransfer, data: bytes | None) -> bytes | None:
    if data is None:
        return await stream.load()
    await stream.save(data)
    return None
