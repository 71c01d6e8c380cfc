"""The device's half against a hostile driver: a ring of any content ends in a chain or in a refusal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.virtqueue.virtqueue import INDIRECT_MAX, Buffer, Chain
from protocol.errors import VirtqueueError
from protocol.split_ring import Descriptor
from scripts.check.model.ring_memory import BASE
from tests.host.virtqueue.hostile_split_ring import Hostile

NEXT, WRITE, INDIRECT = 1, 2, 4


def indirect(table: int, length: int, flags: int = INDIRECT, following: int = 0) -> Descriptor:
    """Return a descriptor that refers to an indirect table."""
    return Descriptor(table, length, flags, following)


# -- the available ring ---------------------------------------------------------------------------------------------


def test_empty_ring_has_no_chain() -> None:
    assert Hostile().device.pop() is None


@pytest.mark.parametrize("size", [1, 8, 256])
@pytest.mark.parametrize("start", [0, 65535])
def test_available_index_may_be_a_whole_ring_ahead(size: int, start: int) -> None:
    ring = Hostile(size, next_avail=start).describe(Descriptor(0x5000, 8, 0, 0)).offer(*[0] * size)
    assert [ring.pop().head for _ in range(size)] == [0] * size
    assert ring.device.pop() is None
    assert ring.device.next_avail == (start + size) & 0xFFFF


@pytest.mark.parametrize("jump", [9, 10, 32768, 65535])
@pytest.mark.parametrize("start", [0, 65530])
def test_available_index_further_ahead_is_refused(jump: int, start: int) -> None:
    ring = Hostile(8, next_avail=start)
    ring.ring.avail[1] = (start + jump) & 0xFFFF
    ring.refuses(f"available index is {jump} ahead in a ring of 8")
    assert ring.device.next_avail == start


@pytest.mark.parametrize("head", [8, 9, 32768, 65535])
def test_head_outside_the_ring_is_refused(head: int) -> None:
    Hostile(8).offer(head).refuses(f"descriptor index {head} in a ring of 8")


# -- direct chains --------------------------------------------------------------------------------------------------


def test_chain_is_read_in_order_with_its_directions() -> None:
    ring = Hostile().describe(
        Descriptor(0x1000, 1, NEXT, 2), Descriptor(0x3000, 3, WRITE, 7), Descriptor(0x2000, 2, NEXT | WRITE, 1)
    )
    chain = ring.offer(0).pop()
    assert chain == Chain(0, [(0x1000, 1)], [(0x2000, 2), (0x3000, 3)], None)


def test_addresses_and_lengths_are_handed_on_unjudged() -> None:
    ring = Hostile().describe(Descriptor(2**64 - 1, 2**32 - 1, NEXT, 1), Descriptor(0, 0, WRITE, 0)).offer(0)
    assert ring.pop() == Chain(0, [(2**64 - 1, 2**32 - 1)], [(0, 0)], None)


def test_unknown_flags_mean_nothing() -> None:
    ring = Hostile().describe(Descriptor(0x1000, 1, 0xFFF8, 3)).offer(0)
    assert ring.pop() == Chain(0, [(0x1000, 1)], [], None)


@pytest.mark.parametrize("following", [8, 65535])
def test_next_outside_the_ring_is_refused(following: int) -> None:
    ring = Hostile(8).describe(Descriptor(0, 1, NEXT, following)).offer(0)
    ring.refuses(f"descriptor index {following} in a ring of 8")


@pytest.mark.parametrize("following", [0, 1])
def test_loop_ends_after_as_many_steps_as_the_ring_has_descriptors(following: int) -> None:
    ring = Hostile(8).describe(Descriptor(0, 1, NEXT, 1), Descriptor(0, 1, NEXT, following)).offer(0)
    ring.refuses("descriptor chain 0 is a loop or longer than its ring of 8")


def test_descriptor_that_follows_itself_is_a_loop_even_in_a_ring_of_one() -> None:
    Hostile(1).describe(Descriptor(0, 1, NEXT, 0)).offer(0).refuses("is a loop")


def test_chain_may_use_every_descriptor_of_the_ring() -> None:
    ring = Hostile(8).describe(*[Descriptor(n << 12, 1, NEXT * (n < 7), n + 1) for n in range(8)]).offer(0)
    assert ring.pop().readable == [(n << 12, 1) for n in range(8)]


def test_readable_after_writable_is_refused() -> None:
    ring = Hostile().describe(Descriptor(0, 1, WRITE | NEXT, 1), Descriptor(0, 1, 0, 0)).offer(0)
    ring.refuses("device-readable descriptor follows a device-writable one")


def test_good_chain_before_a_bad_one_is_served() -> None:
    ring = Hostile().describe(Descriptor(0x1000, 1, 0, 0)).offer(0, 99)
    assert ring.pop().head == 0
    ring.refuses("descriptor index 99")
    assert ring.device.next_avail == 1


# -- indirect tables ------------------------------------------------------------------------------------------------


def test_indirect_descriptor_is_a_whole_report() -> None:
    ring = Hostile(2)
    pages = [Descriptor(n << 22, 4 << 20, WRITE | (NEXT if n < 31 else 0), n + 1) for n in range(32)]
    chain = ring.describe_table(*pages).describe(indirect(ring.table, 512)).offer(0).pop()
    assert chain == Chain(0, [], [(n << 22, 4 << 20) for n in range(32)], (ring.table, 512))
    assert ring.memory.reads == [(ring.table, 512)]


def test_table_is_followed_by_its_own_links_and_its_unused_entries_are_skipped() -> None:
    ring = Hostile()
    ring.describe_table(Descriptor(0xA, 1, NEXT, 2), Descriptor(0xBAD, 1, INDIRECT, 0), Descriptor(0xC, 1, WRITE, 0))
    assert ring.describe(indirect(ring.table, 48)).offer(0).pop().readable == [(0xA, 1)]


def test_direct_descriptors_and_then_a_table_are_one_chain() -> None:
    ring = Hostile()
    ring.describe_table(Descriptor(0xB, 2, NEXT, 1), Descriptor(0xC, 3, WRITE, 0))
    ring.describe(Descriptor(0xA, 1, NEXT, 1), indirect(ring.table, 32))
    assert ring.offer(0).pop() == Chain(0, [(0xA, 1), (0xB, 2)], [(0xC, 3)], (ring.table, 32))


def test_readable_in_a_table_after_a_writable_direct_descriptor_is_refused() -> None:
    ring = Hostile()
    ring.describe_table(Descriptor(0xB, 2, 0, 0)).describe(
        Descriptor(0xA, 1, NEXT | WRITE, 1), indirect(ring.table, 16)
    )
    ring.offer(0).refuses("device-readable descriptor follows")


def test_readable_after_writable_inside_a_table_is_refused() -> None:
    ring = Hostile().describe_table(Descriptor(0xA, 1, NEXT | WRITE, 1), Descriptor(0xB, 1, 0, 0))
    ring.describe(indirect(ring.table, 32)).offer(0).refuses("device-readable descriptor follows")


def test_write_flag_of_the_descriptor_that_refers_to_a_table_is_ignored() -> None:
    ring = Hostile()
    ring.describe_table(Descriptor(0xA, 1, 0, 0)).describe(indirect(ring.table, 16, INDIRECT | WRITE))
    assert ring.offer(0).pop() == Chain(0, [(0xA, 1)], [], (ring.table, 16))


def test_indirect_descriptor_that_was_not_negotiated_is_refused() -> None:
    ring = Hostile(indirect_desc=False)
    ring.describe_table(Descriptor(0xA, 1, WRITE, 0)).describe(indirect(ring.table, 16)).offer(0)
    ring.refuses("INDIRECT_DESC was not negotiated")
    assert ring.memory.reads == []


@pytest.mark.parametrize("length", [0, 8, 15, 17, 24, 16 * INDIRECT_MAX + 16, 2**32 - 16, 2**32 - 1])
def test_table_of_an_impossible_length_is_refused_unread(length: int) -> None:
    ring = Hostile()
    ring.describe(indirect(ring.table, length)).offer(0).refuses(f"an indirect table of {length} bytes")
    assert ring.memory.reads == []


def test_longest_table_is_taken() -> None:
    ring = Hostile()
    last = INDIRECT_MAX - 1
    ring.describe_table(*[Descriptor(n, 1, WRITE | NEXT * (n < last), n + 1) for n in range(INDIRECT_MAX)])
    assert len(ring.describe(indirect(ring.table, 16 * INDIRECT_MAX)).offer(0).pop().writable) == INDIRECT_MAX


def test_table_inside_a_table_is_refused() -> None:
    ring = Hostile()
    ring.describe_table(indirect(ring.table, 16)).describe(indirect(ring.table, 16)).offer(0)
    ring.refuses("an indirect descriptor inside an indirect table")


def test_chain_that_goes_on_past_its_table_is_refused() -> None:
    ring = Hostile()
    ring.describe_table(Descriptor(0xA, 1, 0, 0)).describe(indirect(ring.table, 16, INDIRECT | NEXT, 1)).offer(0)
    ring.refuses("goes on after an indirect table")


@pytest.mark.parametrize("following", [2, 9, 65535])
def test_next_outside_the_table_is_refused(following: int) -> None:
    ring = Hostile().describe_table(Descriptor(0xA, 1, NEXT, following), Descriptor(0xB, 1, 0, 0))
    ring.describe(indirect(ring.table, 32)).offer(0).refuses(f"descriptor index {following} in an indirect table of 2")


@pytest.mark.parametrize("following", [0, 1])
def test_loop_in_a_table_is_refused(following: int) -> None:
    ring = Hostile().describe_table(Descriptor(0xA, 1, NEXT, 1), Descriptor(0xB, 1, NEXT, following))
    ring.describe(indirect(ring.table, 32)).offer(0).refuses("is a loop")


@pytest.mark.parametrize("address", [0, BASE - 8, 2**64 - 16])
def test_table_outside_the_memory_is_refused(address: int) -> None:
    Hostile().describe(indirect(address, 16)).offer(0).refuses("outside the guest's memory")


# -- what was read stays as it was read -----------------------------------------------------------------------------


def test_descriptor_that_changes_after_it_was_read_changes_nothing() -> None:
    ring = Hostile()
    ring.describe_table(Descriptor(0xA, 1, WRITE, 0)).describe(indirect(ring.table, 16)).offer(0)
    chain = ring.pop()
    ring.describe_table(Descriptor(0xBAD, 9, 0, 0)).describe(Descriptor(0xBAD, 9, 0, 0))
    assert chain == Chain(0, [], [(0xA, 1)], (ring.table, 16))


def test_table_that_changes_while_it_is_judged_is_judged_by_one_copy() -> None:
    ring = Hostile()
    ring.describe_table(Descriptor(0xA, 1, WRITE | NEXT, 1), Descriptor(0xB, 1, WRITE, 0))
    ring.describe(indirect(ring.table, 32)).offer(0)
    chain = ring.pop()
    assert len(ring.memory.reads) == 1
    assert chain.writable == [(0xA, 1), (0xB, 1)]


WORDS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 255, 65535])
FLAGS = st.integers(0, 7)


@given(
    descriptors=st.lists(
        st.tuples(st.booleans(), st.integers(0, 2**32 - 1), FLAGS, WORDS, st.integers(0, 6)), min_size=4, max_size=4
    ),
    table=st.lists(st.tuples(st.integers(0, 2**64 - 1), FLAGS, WORDS), max_size=6),
    heads=st.lists(WORDS, min_size=4, max_size=4),
    ahead=WORDS,
)
@pytest.mark.long
@settings(max_examples=300)
def test_ring_of_any_content_ends_in_chains_of_bounded_length_or_in_a_refusal(
    descriptors: list[tuple[bool, int, int, int, int]],
    table: list[tuple[int, int, int]],
    heads: list[int],
    ahead: int,
) -> None:
    ring = Hostile(4)
    ring.describe_table(*[Descriptor(address, 4096, flags, following) for address, flags, following in table])
    for index, (at_table, length, flags, following, entries) in enumerate(descriptors):
        address, size = (ring.table, 16 * entries) if at_table else (0x9000, length)
        ring.ring.write_descriptor(index, Descriptor(address, size, flags, following))
    for slot, head in enumerate(heads):
        ring.ring.avail[2 + slot] = head
    ring.ring.avail[1] = ahead
    before = bytes(ring.memory.memory)
    buffers: list[Buffer] = []
    try:
        for _ in range(5):
            if (chain := ring.device.pop()) is None:
                break
            assert chain.head < 4
            assert 1 <= len(chain.readable) + len(chain.writable) <= 4 + 6
            buffers += chain.readable + chain.writable
        else:
            raise AssertionError("a ring of four gave five chains")
    except VirtqueueError:
        pass
    assert bytes(ring.memory.memory) == before
