"""Faults in what a device says of pages with the draft's bits: see :mod:`scripts.check.device.cases.drafts`."""

from typing import Any

from host.balloon import virtio_balloon
from host.balloon.virtio_balloon import VirtioBalloon
from scripts.check.broken.fault import fault, replaced


@fault("draft-length-is-sum", caught_by=("draft-report-beyond/split", "draft-report-beyond/packed"))
def _() -> None:
    """The used length of a report is the sum of its buffers, whatever became of them."""

    def summed(buffers: Any, plan: Any) -> int:
        return sum(length for _, length in buffers)

    replaced(virtio_balloon, "initialised_bytes", lambda original: summed)


@fault("draft-bitmap-of-ones", caught_by=("draft-inflate/split", "draft-inflate-beyond"))
def _() -> None:
    """Every bit of the bitmap is set."""

    def ones(pfns: Any, plan: Any) -> bytes:
        return b"\xff" * -(-len(pfns) // 8)

    replaced(virtio_balloon, "initialised_bitmap", lambda original: ones)


@fault("draft-bitmap-backwards", caught_by=("draft-inflate/split", "draft-inflate/packed"))
def _() -> None:
    """The highest bit of a byte of the bitmap is that of the first page."""

    def make(original: Any) -> Any:
        def bitmap(pfns: Any, plan: Any) -> bytes:
            return bytes(int(f"{byte:08b}"[::-1], 2) for byte in original(pfns, plan))

        return bitmap

    replaced(virtio_balloon, "initialised_bitmap", make)


@fault("draft-without-negotiation", caught_by=("draft-not-negotiated/split", "draft-not-negotiated/packed"))
def _() -> None:
    """Used lengths and the bitmap are those of the draft although its bits were not accepted."""
    replaced(VirtioBalloon, "_tells_initialised", lambda original: lambda self, feature: True)
