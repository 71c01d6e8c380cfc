"""Free page hinting: on the device's command, send it all free memory, and keep that until the device is done with it.

Behaviour as in Linux ``drivers/virtio/virtio_balloon.c``: report_free_page_func, send_free_pages, shrink_free_pages.
Source: virtio 1.2, 5.5.6.5."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MAX_ORDER, MigrateType
from guest.mm.watermark import AllocFlags

VIRTIO_BALLOON_CMD_ID_STOP: Final = 0
VIRTIO_BALLOON_CMD_ID_DONE: Final = 1
"""Command ids with a fixed meaning; all others number a round."""

VIRTIO_BALLOON_HINT_BLOCK_ORDER: Final = MAX_ORDER


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Send ``command_id`` in a device-readable buffer of 4 bytes.

    At most one that begins a round and one that ends it are under way: the driver has one buffer for each.
    """

    command_id: int


@dataclass(frozen=True, slots=True, eq=False)
class SendBlock:
    """Send the free block of HINT_BLOCK_ORDER from page frame ``pfn`` in a device-writable buffer."""

    pfn: int


Hint = SendCommand | SendBlock


class HintingState(Enum):
    """The kind of hint that is sent next."""

    IDLE = auto()
    START = auto()
    BLOCKS = auto()
    STOP = auto()


class FreePageHinting:
    """The driver's half of hinting on a queue of ``entries`` descriptors, for the life of one device.

    Call :meth:`next_hint` and send its result until it is None; again after :meth:`command_id_received` and
    :meth:`used`.
    """

    def __init__(
        self, allocator: PageAllocator, entries: int, *, on_release: Callable[[int, int], None] | None = None
    ) -> None:
        self._allocator = allocator
        self._entries = entries
        self._on_release = on_release
        self._state = HintingState.IDLE
        self._received = self._active = VIRTIO_BALLOON_CMD_ID_STOP
        self._under_way: set[Hint] = set()
        self._starting = self._stopping = False
        self._unused: dict[SendBlock, None] = {}
        self._used: dict[SendBlock, None] = {}

    @property
    def state(self) -> HintingState:
        """What is to be sent next."""
        return self._state

    @property
    def command_id(self) -> int:
        """The round that was begun last, 0 for none."""
        return self._active

    @property
    def held_blocks(self) -> int:
        """Blocks of HINT_BLOCK_ORDER that hinting holds."""
        return len(self._unused) + len(self._used)

    # --- Commands and answers of the device ---

    def command_id_received(self, command_id: int) -> int:
        """Take the id from the configuration space; return how many blocks this has set free.

        DONE frees all blocks, also those whose buffers are still in flight: the device has finished with them.
        """
        self._received = command_id
        if command_id != VIRTIO_BALLOON_CMD_ID_DONE:
            return 0
        return self.return_free_pages_to_mm()

    def used(self, hint: Hint) -> None:
        """Note that the device has used the buffer of ``hint``."""
        self._under_way.discard(hint)
        if isinstance(hint, SendBlock):
            if hint in self._unused:
                del self._unused[hint]
                self._used[hint] = None
        elif hint.command_id == VIRTIO_BALLOON_CMD_ID_STOP:
            self._stopping = False
        else:
            self._starting = False

    # --- What to send ---

    def next_hint(self) -> Hint | None:
        """Return the next hint to be sent; None at the end of a round, or while the queue is full."""
        new_round = self._received > VIRTIO_BALLOON_CMD_ID_DONE and self._received != self._active
        if self._state is HintingState.IDLE and new_round:
            self._active = self._received
            self._state = HintingState.START
        if self._state is HintingState.START:
            return self._start()
        if self._state is HintingState.BLOCKS:
            if self._received == self._active and self._entries > 1:
                # One entry stays for the command that ends the round; a queue of one has none for blocks.
                if len(self._under_way) >= self._entries - 1:
                    return None
                pfn = self._allocator.alloc_pages(
                    VIRTIO_BALLOON_HINT_BLOCK_ORDER, MigrateType.UNMOVABLE, AllocFlags.NORETRY | AllocFlags.NO_KSWAPD
                )
                if pfn is not None:
                    return self._send(pfn)
            self._state = HintingState.STOP
        if self._state is HintingState.STOP:
            return self._stop()
        return None

    def _start(self) -> Hint | None:
        if self._starting or len(self._under_way) >= self._entries:
            return None
        self._starting = True
        self._state = HintingState.BLOCKS
        return self._begin(SendCommand(self._active))

    def _stop(self) -> Hint | None:
        if self._stopping or len(self._under_way) >= self._entries:
            return None
        self._stopping = True
        self._state = HintingState.IDLE
        return self._begin(SendCommand(VIRTIO_BALLOON_CMD_ID_STOP))

    def _send(self, pfn: int) -> Hint:
        block = SendBlock(pfn)
        self._unused[block] = None
        return self._begin(block)

    def _begin(self, hint: Hint) -> Hint:
        self._under_way.add(hint)
        return hint

    # --- Blocks back to the allocator ---

    def return_free_pages_to_mm(self) -> int:
        """Free all blocks that hinting holds, the newest first; return how many there were. Also called when the device
        is gone, and so has finished with them."""
        held = [*self._used, *self._unused]
        self._used.clear()
        self._unused.clear()
        for block in reversed(held):
            self._free(block)
        return len(held)

    def shrink(self, nr_pages: int) -> int:
        """Free blocks that the device has given back, until ``nr_pages`` pages are free; return the number of pages
        freed. It is a shrinker (:mod:`guest.mm.vmscan`)."""
        freed = 0
        while freed < nr_pages and self._used:
            block, _ = self._used.popitem()
            self._free(block)
            freed += 1 << VIRTIO_BALLOON_HINT_BLOCK_ORDER
        return freed

    def _free(self, block: SendBlock) -> None:
        if self._on_release is not None:
            self._on_release(block.pfn, 1 << VIRTIO_BALLOON_HINT_BLOCK_ORDER)
        self._allocator.free_pages(block.pfn, VIRTIO_BALLOON_HINT_BLOCK_ORDER)
