"""A virtual machine without a guest: a device that was brought up, the queues of its driver, and the memory.

What differs between targets is how a device is reached: by vhost-user messages, or by the registers of a transport.
:class:`Machine` is what is common; a target makes machines through :class:`Device`.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self

from guest.virtqueue.virtqueue import UsedBuffer
from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import PFN_SHIFT, BalloonFeature, BalloonQueue, QueueDialect
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.memory_file import MemoryFile, as_ranges
from scripts.check.verdict import Failed, Found, NotExercised, skip

WANTED: Final = feature_mask(
    FeatureBit.VERSION_1,
    FeatureBit.RING_EVENT_IDX,
    FeatureBit.RING_INDIRECT_DESC,
    BalloonFeature.STATS_VQ,
    BalloonFeature.DEFLATE_ON_OOM,
    BalloonFeature.FREE_PAGE_HINT,
    BalloonFeature.PAGE_REPORTING,
)
"""What a machine accepts where it is offered. With every offered queue accepted, all ways to number them agree."""

QUEUE_SIZE: Final = 128

Range = tuple[int, int]
"""An offset in the memory and a length, in bytes."""


class Machine(ABC):
    """A device that was brought up with ``features``, and the machine around it."""

    def __init__(self, memory: MemoryFile, guest_base: int, features: int) -> None:
        self.memory = memory
        self.guest_base = guest_base
        self.features = features
        self.queues: dict[int, DriverQueue] = {}

    def has(self, feature: int) -> bool:
        """Whether the feature bit was negotiated."""
        return has_feature(self.features, feature)

    def queue(self, kind: BalloonQueue) -> DriverQueue:
        """Return the queue that carries ``kind``; the case is NOT EXERCISED where it was not negotiated."""
        for queue in self.queues.values():
            if queue.kind is kind:
                return queue
        return skip(f"the device does not offer the {kind.value} queue")

    @property
    def reporting(self) -> DriverQueue:
        """The reporting queue."""
        return self.queue(BalloonQueue.REPORTING)

    def address(self, offset: int) -> int:
        """Return the guest address of an offset in the memory."""
        return self.guest_base + offset

    def buffers(self, ranges: Iterable[Range]) -> list[Range]:
        """Return ranges of the memory as buffers: guest address and length."""
        return [(self.address(offset), length) for offset, length in ranges]

    # -- what a well-behaved driver does ----------------------------------------------------------------------------

    def report(self, *ranges: Range) -> UsedBuffer:
        """Report ranges of the memory in one chain and return the used buffer."""
        self.reporting.offer((), self.buffers(ranges))
        return self.reporting.collect()[0]

    def send_pfns(self, kind: BalloonQueue, pages: Iterable[int]) -> UsedBuffer:
        """Send the page frame numbers of offsets in the memory on the inflate or deflate queue."""
        pfns = [self.address(offset) >> PFN_SHIFT for offset in pages]
        queue = self.queue(kind)
        queue.offer_data(struct.pack(f"<{len(pfns)}I", *pfns))
        return queue.collect()[0]

    def inflate(self, *pages: int) -> UsedBuffer:
        """Put pages, by their offsets, into the balloon."""
        return self.send_pfns(BalloonQueue.INFLATE, pages)

    def deflate(self, *pages: int) -> UsedBuffer:
        """Take pages, by their offsets, out of the balloon."""
        return self.send_pfns(BalloonQueue.DEFLATE, pages)

    def check_alive(self) -> None:
        """Check that the device still works: of two pages exactly the reported one goes.

        Raises:
            Failed: it does not.
            Found: it gives the buffer back and leaves the page, as the text allows.
        """
        here, other = self.memory.size - 8 * PAGE_SIZE, self.memory.size - 2 * PAGE_SIZE
        kind = BalloonQueue.REPORTING if self.has(BalloonFeature.PAGE_REPORTING) else BalloonQueue.INFLATE
        self.memory.touch(here, PAGE_SIZE)
        self.memory.touch(other, PAGE_SIZE)
        if kind is BalloonQueue.REPORTING:
            self.report((here, PAGE_SIZE))
        else:
            self.inflate(here)
        there = self.memory.present(here)
        if there == {here, other}:
            raise Found(f"the device acknowledged and discarded nothing: {here:#x} is still there", "F-discard")
        if there != {other}:
            raise Failed(
                f"afterwards the device no longer works: it left {as_ranges(there)}, gave back all but one page",
                "M-safe",
            )

    def check_survives(self) -> None:
        """Check, after a mistake of the driver, that the device still works, or says that it needs a reset.

        Raises:
            Found: the queues stand still, and the device does not say why; or it leaves the page.
        """
        try:
            self.check_alive()
        except Failed as failed:
            if not self.wants_reset():
                raise Found(
                    f"a mistake of the driver stops the device without a word: {failed.reason}", "G-2"
                ) from failed

    def wants_reset(self) -> bool:
        """Return whether the device asks for a reset; False where it has no way to."""
        try:
            return self.needs_reset()
        except NotExercised:
            return False

    # -- what was discarded -----------------------------------------------------------------------------------------

    def check_gone(self, before: set[int], gone: set[int], *clauses: str) -> None:
        """Check that of the pages ``before`` exactly ``gone`` were discarded and the others hold what they held.

        Raises:
            Failed: the set differs, or a page was changed.
        """
        after = self.memory.present()
        if missing := before - gone - after:
            raise Failed(f"pages that were not given away are gone: {as_ranges(missing)}", *clauses)
        if kept := after & gone:
            raise Failed(f"pages that were given away are still there: {as_ranges(kept)}", *clauses)
        if new := after - before:
            raise Failed(f"pages came into being: {as_ranges(new)}", *clauses)
        if spoilt := self.memory.spoilt(after):
            raise Failed(f"pages that were not given away changed: {as_ranges(spoilt)}", *clauses)

    # -- what a target does in its own way --------------------------------------------------------------------------

    @abstractmethod
    def run(self) -> None:
        """Have the device serve its queues: DRIVER_OK, or starting the rings."""

    @abstractmethod
    def read_config(self, offset: int, length: int) -> bytes:
        """Return bytes of the configuration space."""

    @abstractmethod
    def write_config(self, offset: int, data: bytes) -> None:
        """Write bytes of the configuration space."""

    @abstractmethod
    def config_changed(self) -> bool:
        """Return whether the device told of a change of its configuration since this was last called."""

    @abstractmethod
    def barrier(self) -> None:
        """Return when the device has handled everything that it was sent."""

    @abstractmethod
    def reset(self) -> None:
        """Reset the device. Its queues are not touched any more."""

    @abstractmethod
    def begin_again(self) -> None:
        """Reset the device and bring it up once more with the same features, as the machine's next driver does."""

    @abstractmethod
    def needs_reset(self) -> bool:
        """Return whether the device says that it needs a reset."""

    @abstractmethod
    def close(self) -> None:
        """Take the device down and let the memory go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Device(ABC):
    """A balloon device that is judged. ``name`` says in a few words what it is, ``offered`` are its feature bits."""

    name: str
    offered: int

    @abstractmethod
    def machine(
        self,
        *,
        wanted: int = WANTED,
        packed: bool = False,
        size: int = QUEUE_SIZE,
        dialect: QueueDialect = QueueDialect.NEGOTIATED,
        run: bool = True,
        uninvited: int = 0,
    ) -> Machine:
        """Bring the device up with the features that are offered of ``wanted``, each ring of ``size`` entries.

        Without ``run`` the last step, which has the device serve its queues, is left to :meth:`Machine.run`. The queues
        of ``uninvited`` features are set up too, as if they had been accepted.

        Raises:
            NotExercised: the device does not offer packed rings, and they are asked for.
            Failed: the device refuses a step.
            TargetError: the device cannot be reached.
        """

    @abstractmethod
    def check_reachable(self) -> None:
        """Check, between two machines, that the device can be brought up once more.

        Raises:
            TargetError: it is gone, or does not answer.
        """

    def how_it_ended(self) -> str:
        """Return how the device's process ended, "" while it runs or where the target gives no way to know."""
        return ""

    def resize(self, machine: Machine, pages: int) -> None:
        """Have the device ask its driver for a balloon of ``pages``.

        Raises:
            NotExercised: the target gives no way to it.
        """
        skip("the target gives no way to ask for a balloon of another size (see --qmp)")

    def pause(self, machine: Machine) -> None:
        """Stop the machine as its monitor does: its processors and its queues, until :meth:`go_on`."""
        skip("the target gives no way to stop its machine")

    def go_on(self, machine: Machine) -> None:
        """Have a paused machine go on where it was."""
        skip("the target gives no way to stop its machine")

    def hint_round(self, machine: Machine) -> AbstractContextManager[None]:
        """Have the device ask for hints as long as the context is open, which the driver's STOP may end before.

        Raises:
            NotExercised: the target gives no way to it.
        """
        return skip("the target gives no way to begin a round of hints (see --qmp)")


def accepted(offered: int, wanted: int, *, packed: bool) -> int:
    """Return the features that a driver accepts; the case is NOT EXERCISED without packed rings if they are wanted."""
    features = offered & wanted
    if packed:
        if not has_feature(offered, FeatureBit.RING_PACKED):
            skip("the device does not offer RING_PACKED")
        features |= feature_mask(FeatureBit.RING_PACKED)
    return features
