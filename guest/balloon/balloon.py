"""The balloon: pages that the guest takes from its own allocator and gives to the host, and the steps to its target.

Behaviour as in Linux ``drivers/virtio/virtio_balloon.c``: update_balloon_size_func, fill_balloon, leak_balloon,
virtio_balloon_oom_notify."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MigrateType
from guest.mm.watermark import AllocFlags
from protocol.virtio import has_feature
from protocol.virtio_balloon import BalloonFeature, BalloonQueue

VIRTIO_BALLOON_ARRAY_PFNS_MAX: Final = 256
"""Page frame numbers in one message."""

VIRTIO_BALLOON_OOM_NR_PAGES: Final = 256
"""Pages that the balloon gives up each time memory runs out."""

OUT_OF_PUFF_SECONDS: Final = 0.2
"""How long the balloon waits for memory that it could not get."""


@dataclass(frozen=True, slots=True)
class TellHost:
    """Send ``pfns`` on ``queue`` and wait for the acknowledgement."""

    queue: BalloonQueue
    pfns: "array[int]"


@dataclass(frozen=True, slots=True)
class UpdateSize:
    """Write ``actual``, in pages, to the configuration space."""

    actual: int


@dataclass(frozen=True, slots=True)
class OutOfPuff:
    """The allocator has nothing more to give: let ``seconds`` pass."""

    seconds: float


Step = TellHost | UpdateSize | OutOfPuff


class Balloon:
    """The balloon of one machine, for all its devices one after the other. It stays inflated in between.

    ``on_work`` is called when a next step becomes available outside of :meth:`done`.
    ``on_release``, if given, is called with the page frame numbers of pages that are about to be free.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        on_work: Callable[[], None],
        *,
        on_release: "Callable[[array[int]], None] | None" = None,
    ) -> None:
        self._allocator = allocator
        self._on_work = on_work
        self._on_release = on_release
        self._pages = _none()
        self._inflating = _none()
        self._deflating = _none()
        self._promised = _none()
        self._told_late = _none()
        self._must_tell_host = False
        self.deflate_on_oom = False
        """Whether the balloon deflates when memory runs out. Its pages then count as memory of the guest."""
        self._actual = 0
        self._target = 0
        self._adjusting = False
        self._out_of_puff = False

    @property
    def num_pages(self) -> int:
        """Pages that are in the balloon, on their way into it or out of it."""
        return len(self._pages) + len(self._inflating) + len(self._deflating) + len(self._promised)

    def pfns(self) -> "array[int]":
        """Return the page frame numbers of these pages."""
        return self._pages + self._inflating + self._deflating + self._promised

    @property
    def untold_pfns(self) -> "array[int]":
        """Those among them that the device has not been told of yet, or has not acknowledged."""
        return self._inflating

    # --- The device ---

    def attach(self, features: int, actual: int, target: int) -> None:
        """Begin with a device of these negotiated ``features``, whose configuration space holds ``actual``.

        A message that an earlier device did not acknowledge is sent to this one again.
        """
        self._must_tell_host = has_feature(features, BalloonFeature.MUST_TELL_HOST)
        self.deflate_on_oom = has_feature(features, BalloonFeature.DEFLATE_ON_OOM)
        self._actual = actual
        self.set_target(target)

    def set_target(self, num_pages: int) -> None:
        """Set the target to ``num_pages``. A change takes effect with the next step."""
        self._target = num_pages
        self._adjusting = True
        self._on_work()

    # --- Steps ---

    def next_step(self) -> Step | None:
        """Return the step to be done now, None at the target. Ask again after :meth:`done`."""
        if self._inflating:
            return TellHost(BalloonQueue.INFLATE, self._inflating)
        if self._deflating:
            return TellHost(BalloonQueue.DEFLATE, self._deflating)
        if self._told_late:
            return TellHost(BalloonQueue.DEFLATE, self._told_late[:VIRTIO_BALLOON_ARRAY_PFNS_MAX])
        if self._promised:
            self._deflating = self._promised[:VIRTIO_BALLOON_ARRAY_PFNS_MAX]
            del self._promised[:VIRTIO_BALLOON_ARRAY_PFNS_MAX]
            return TellHost(BalloonQueue.DEFLATE, self._deflating)
        if self._actual != self.num_pages:
            return UpdateSize(self.num_pages)
        if self._out_of_puff:
            return OutOfPuff(OUT_OF_PUFF_SECONDS)
        return self._adjust()

    def _adjust(self) -> Step | None:
        if not self._adjusting:
            return None
        difference = self._target - self.num_pages
        if difference > 0:
            self._fill(difference)
        elif difference < 0:
            self._deflating = self._dequeue(min(-difference, VIRTIO_BALLOON_ARRAY_PFNS_MAX))
        else:
            # From here on only a new target counts: pages given up when memory ran out are not taken again at once.
            self._adjusting = False
            return None
        return self.next_step()

    def done(self, step: Step) -> None:
        """Complete ``step``, the one that :meth:`next_step` returned last. A message is done when it is
        acknowledged."""
        if isinstance(step, UpdateSize):
            self._actual = step.actual
        elif isinstance(step, OutOfPuff):
            self._out_of_puff = False
        elif step.queue is BalloonQueue.INFLATE:
            self._pages.extend(self._inflating)
            self._inflating = _none()
        elif self._deflating:
            self._free(self._deflating)
            self._deflating = _none()
        else:
            del self._told_late[: len(step.pfns)]

    def _fill(self, pages: int) -> None:
        alloc_pages = self._allocator.alloc_pages
        wanted = min(pages, VIRTIO_BALLOON_ARRAY_PFNS_MAX)
        for _ in range(wanted):
            pfn = alloc_pages(0, MigrateType.MOVABLE, AllocFlags.NORETRY)
            if pfn is None:
                self._out_of_puff = True
                break
            self._inflating.append(pfn)
        # Enqueued from the last allocated to the first, and dequeued from the newest on: the first comes out first.
        self._inflating.reverse()

    def _dequeue(self, pages: int) -> "array[int]":
        begin = max(0, len(self._pages) - pages)
        taken = self._pages[begin:]
        del self._pages[begin:]
        taken.reverse()
        return taken

    def _free(self, pfns: "array[int]") -> None:
        if self._on_release is not None:
            self._on_release(pfns)
        free_pages = self._allocator.free_pages
        for pfn in reversed(pfns):
            free_pages(pfn, 0)

    # --- Out of memory ---

    def out_of_memory(self) -> int:
        """Deflate because memory ran out (``DEFLATE_ON_OOM``); return the number of pages, 0 without that feature.

        Linux tells the device and waits for it while the allocation waits. An allocation here does not wait, so:

        * Without MUST_TELL_HOST the pages are free at once, as virtio allows, and the device is told next.
        * With it the pages leave the balloon, the device is told next, and they are free with its acknowledgement: this
          allocation fails, and a later attempt finds them.
        """
        if not self.deflate_on_oom:
            return 0
        pages = self._dequeue(VIRTIO_BALLOON_OOM_NR_PAGES)
        if not pages:
            return 0
        if self._must_tell_host:
            self._promised.extend(pages)
        else:
            self._told_late.extend(pages)
            self._free(pages)
        self._on_work()
        return len(pages)


def _none() -> "array[int]":
    return array("I")
