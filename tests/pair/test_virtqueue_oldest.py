"""A device that remembers nothing goes on where the driver says: with the oldest request that was not given back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.check.model.ring_memory import AnyRingMemory, PackedRingMemory, RingMemory, halves

SIZE = 8


def make(packed: bool) -> AnyRingMemory:
    """Return the memory of a ring."""
    return PackedRingMemory(SIZE) if packed else RingMemory(SIZE)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@given(rounds=st.lists(st.tuples(st.integers(1, SIZE), st.integers(0, SIZE)), min_size=1, max_size=12), data=st.data())
def test_new_device_finds_all_that_the_last_one_did_not_give_back(
    packed: bool, rounds: list[tuple[int, int]], data: st.DataObject
) -> None:
    memory = make(packed)
    driver, device = halves(memory)
    outstanding: list[int] = []
    address = 0
    for added, given_back in rounds:
        for _ in range(min(added, SIZE - len(outstanding))):
            address += 4096
            driver.add((), [(address, 4096)])
            outstanding.append(address)
        for _ in range(min(given_back, len(outstanding))):
            chain = device.pop()
            assert chain is not None
            assert chain.writable == [(outstanding.pop(0), 4096)]
            device.add_used(chain.head, 0)
        for _ in range(data.draw(st.integers(0, len(outstanding)))):
            assert device.pop() is not None  # taken, and lost with the device
        while driver.get_used() is not None:
            pass
        device = memory.device(base=driver.oldest)
    found = []
    while (chain := device.pop()) is not None:
        found += [at for at, _ in chain.writable]
    assert found == outstanding
