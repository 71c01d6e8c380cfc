"""A queue that no numbering knows: its chains are answered and nothing is done for them."""

import struct

import pytest

from host.balloon.virtio_balloon import Outcome, VirtioBalloon
from host.memory.discard_plan import Refusal
from host.virtqueue.virtqueue import Chain
from tests.host.balloon.test_virtio_balloon import ARRAY, memory_of, pfns


def serve_unknown(readable: bytes = b"", writable: list[tuple[int, int]] | None = None) -> Outcome:
    buffers = [(ARRAY, len(readable))] if readable else []
    chain = Chain(0, buffers, writable or [], None)
    return VirtioBalloon().serve(None, chain, memory_of((0, 64)), lambda _address, length: readable[:length])


def test_pages_of_an_unknown_queue_are_kept_and_given_back() -> None:
    outcome = serve_unknown(writable=[(0x1000, 0x1000), (0x4000, 0x2000)])
    assert outcome.plan.discards == []
    assert [(each.reason, each.ranges, each.bytes) for each in outcome.plan.refused_by_reason()] == [
        (Refusal.UNKNOWN_QUEUE, 2, 0x3000)
    ]
    assert not outcome.hold


@pytest.mark.parametrize(
    ("data", "held"),
    [
        (struct.pack("<HQHQ", 4, 1 << 30, 5, 2 << 30), True),
        (struct.pack("<HQHQ", 4, 1 << 30, 99, 2 << 30), False),
        (struct.pack("<I", 7), False),
        (pfns(100, 101, 102, 103, 104), False),
    ],
    ids=["statistics", "other tag", "command id", "page numbers"],
)
def test_statistics_on_an_unknown_queue_are_held_since_their_driver_would_answer_at_once(
    data: bytes, held: bool
) -> None:
    outcome = serve_unknown(data)
    assert outcome.hold == held
    assert outcome.statistics is None
    assert outcome.plan.discards == []
