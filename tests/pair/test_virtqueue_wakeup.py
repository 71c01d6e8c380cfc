"""Both halves of a virtqueue as two sleepers that wake each other: no kick and no interrupt is ever lost."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.check.model.ring_memory import AnyDevice, AnyDriver, AnyRingMemory, PackedRingMemory, RingMemory, halves
from scripts.check.model.wakeup import FENCES, LostWakeUpError, Pair, run_without_fence

BEGINNINGS = st.one_of(st.just(0), st.integers(65536 - 300, 65535), st.integers(0, 200000))


@pytest.mark.long
@given(
    size=st.integers(4, 64),
    packed=st.booleans(),
    begin=BEGINNINGS,
    event_idx=st.booleans(),
    in_order=st.booleans(),
    tables=st.integers(0, 3),
    requests=st.integers(1, 60),
    schedule=st.binary(max_size=300),
)
@settings(max_examples=500)
def test_notifications_are_never_lost(
    size: int, packed: bool, begin: int, event_idx: bool, in_order: bool, tables: int, requests: int, schedule: bytes
) -> None:
    memory: AnyRingMemory
    if packed:
        memory = PackedRingMemory(size, tables=tables, capacity=4)
    else:
        memory = RingMemory(1 << size.bit_length() - 1, tables=tables, capacity=4)
    pair = Pair(memory, event_idx=event_idx, in_order=in_order, begin=begin, requests=requests, schedule=schedule)
    pair.run()
    assert pair.sent == pair.served == pair.collected == list(range(requests))


def run_random_schedules(memory_of: type[AnyRingMemory]) -> None:
    """Run 50 pairs, the same in every run of the tests."""
    generator = random.Random(1)
    for _ in range(50):
        schedule = generator.randbytes(200)
        Pair(memory_of(4), event_idx=True, in_order=False, begin=0, requests=30, schedule=schedule).run()


@pytest.mark.parametrize("memory_of", [RingMemory, PackedRingMemory], ids=["split", "packed"])
@pytest.mark.parametrize("side", ["driver", "device"])
def test_model_finds_a_side_that_falls_asleep_without_looking_again(
    side: str, memory_of: type[AnyRingMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The proof above is worth something only if it fails for a queue that has the classic fault.
    driver, device = halves(memory_of(4))
    asleep, kind = ("enable_interrupt", type(driver)) if side == "driver" else ("enable_notification", type(device))
    look_again = getattr(kind, asleep)

    def careless(queue: AnyDriver | AnyDevice) -> bool:
        return bool(look_again(queue)) and False

    monkeypatch.setattr(kind, asleep, careless)
    with pytest.raises(LostWakeUpError, match="sleep for ever"):
        run_random_schedules(memory_of)


@pytest.mark.parametrize(("module", "method"), FENCES)
def test_model_finds_each_missing_fence(module: str, method: str) -> None:
    with pytest.raises(LostWakeUpError, match="sleep for ever"):
        run_without_fence(module, method)
