"""Free page hinting: on the device's word, tell it all free memory there is, and keep that until it is done with it.

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
"""Command ids that have a meaning of their own; all others number a round."""

VIRTIO_BALLOON_HINT_BLOCK_ORDER: Final = MAX_ORDER


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Send ``command_id`` in a device-readable buffer of 4 bytes.

    Not two at a time of those that begin a round, nor of those that end one: each kind may have one buffer.
    """

    command_id: int


@dataclass(frozen=True, slots=True, eq=False)
class SendBlock:
    """Send the free block of HINT_BLOCK_ORDER from page frame ``pfn`` in a device-writable buffer."""

    pfn: int


Hint = SendCommand | SendBlock


class HintingState(Enum):
    """What is to be sent next."""

    IDLE = auto()
    START = auto()
    BLOCKS = auto()
    STOP = auto()


class FreePageHinting:
    """The driver's half of hinting on a queue of ``entries`` descriptors, from the device's coming to its going.

    Ask :meth:`next_hint` for what to send until it says None; again after :meth:`command_id_received` and :meth:`used`.
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
        """Blocks of HINT_BLOCK_ORDER that are kept from the allocator."""
        return len(self._unused) + len(self._used)

    # --- The device's word ---

    def command_id_received(self, command_id: int) -> int:
        """Take note of the id in the configuration space; return how many blocks this has set free.

        DONE frees all blocks: the device does nothing to them any more, whether it has given them back or not.
        """
        self._received = command_id
        if command_id != VIRTIO_BALLOON_CMD_ID_DONE:
            return 0
        return self.return_free_pages_to_mm()

    def used(self, hint: Hint) -> None:
        """Say that the device has given back the buffer of ``hint``."""
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
        """Return what is to be sent now; None while there is nothing, or no room in the queue."""
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
        """Free all blocks that are kept, the newest first; return how many there were. Also for when the device has
        gone: it does nothing to them any more either."""
        held = [*self._used, *self._unused]
        self._used.clear()
        self._unused.clear()
        for block in reversed(held):
            self._free(block)
        return len(held)

    def shrink(self, nr_pages: int) -> int:
        """Free blocks until ``nr_pages`` pages are free or there are no more that the device has given back; return the
        number of pages freed. It is a shrinker (:mod:`guest.mm.vmscan`)."""
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
