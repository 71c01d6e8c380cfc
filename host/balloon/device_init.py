"""Which pages come back initialised: DEVICE_INIT_REPORTED and DEVICE_INIT_ON_INFLATE.

Both are drafts (oasis-tcs/virtio-spec #244 and #242) whose numbers and meaning may change, so the device offers them
only when it is told to. Their common idea: a page that a device has discarded reads as zeros, and a driver that knows
need not clear it again.

- Reports: the used length says how many bytes of the chain, from its first device-writable byte on, are initialised.
- Inflating: a device-writable bitmap follows the page numbers in the chain. Bit ``i``, the lowest of a byte first, is
  set if page ``i`` is initialised; the used length is the number of bytes of the bitmap that were written.

A page is called initialised when this device has discarded it for this chain. A page that was kept is not, whatever it
holds. While writes are logged for a migration, nothing is called initialised: discards are not logged, so the
destination may have the old content.
"""

from bisect import bisect_right
from collections.abc import Sequence

from host.memory.discard_plan import DiscardPlan, Refusal
from host.virtqueue.virtqueue import Buffer
from protocol.memory import PAGE_SIZE
from protocol.virtio_balloon import PFN_SHIFT


def initialised_bytes(buffers: Sequence[Buffer], plan: DiscardPlan) -> int:
    """Return how many bytes of a report's ``buffers``, from the first on, were discarded by ``plan``."""
    kept = {(address, length) for _, address, length in plan.refused}
    total = 0
    for address, length in buffers:
        if (address, length) in kept and length:
            break
        total += length
    return total


def initialised_bitmap(pfns: Sequence[int], plan: DiscardPlan) -> bytes:
    """Return one bit for each of ``pfns``, set if ``plan`` has discarded that page."""
    starts, ends = _kept_runs(plan)
    bitmap = bytearray(-(-len(pfns) // 8))
    for number, pfn in enumerate(pfns):
        address = pfn << PFN_SHIFT
        before = bisect_right(starts, address + PAGE_SIZE - 1)
        if before == 0 or ends[before - 1] <= address:
            bitmap[number // 8] |= 1 << number % 8
    return bytes(bitmap)


def _kept_runs(plan: DiscardPlan) -> tuple[list[int], list[int]]:
    # Begin and end of each run of kept guest memory, in order. A refusal of the array itself names no page of it.
    starts: list[int] = []
    ends: list[int] = []
    for reason, address, length in sorted(plan.refused, key=lambda refused: refused.address):
        if reason is Refusal.TOO_LONG:
            continue
        if ends and address <= ends[-1]:
            ends[-1] = max(ends[-1], address + length)
        else:
            starts.append(address)
            ends.append(address + length)
    return starts, ends
