"""guest/mm/page_flags.py: every byte means one thing."""

from guest.mm.page_flags import (
    ABSENT,
    ALLOCATED,
    ALLOCATED_ORDER,
    BLOCK_ORDER,
    BUDDY,
    BUDDY_ORDER,
    ISOLATED,
    MOVABLE,
    PCP,
    REPORTED,
    TAIL,
    page_reported,
)

STATES = [BUDDY, BUDDY | REPORTED | 10, ALLOCATED, ALLOCATED | MOVABLE, ISOLATED | 9, PCP, TAIL, ABSENT]


def test_page_states_give_back_their_order_in_their_own_tables_only() -> None:
    for order in range(11):
        for state in (BUDDY | order, BUDDY | REPORTED | order):
            assert (BUDDY_ORDER[state], ALLOCATED_ORDER[state], BLOCK_ORDER[state]) == (order, None, order)
        for state in (ALLOCATED | order, ALLOCATED | MOVABLE | order):
            assert (BUDDY_ORDER[state], ALLOCATED_ORDER[state], BLOCK_ORDER[state]) == (None, order, order)
        for state in (ISOLATED | order, PCP | order):
            assert (BUDDY_ORDER[state], ALLOCATED_ORDER[state], BLOCK_ORDER[state]) == (None, None, order)


def test_other_states_do_not_begin_a_block() -> None:
    assert sum(order is not None for order in BLOCK_ORDER) == 6 * 11
    assert BLOCK_ORDER[TAIL] is None
    assert BLOCK_ORDER[ABSENT] is None


def test_page_reported_holds_for_a_free_block_alone() -> None:
    mem_map = bytearray(STATES)
    assert [page_reported(mem_map, pfn) for pfn in range(8)] == [False, True, False, False, False, False, False, False]


def test_free_blocks_alone_have_a_buddy_order() -> None:
    assert [BUDDY_ORDER[state] for state in STATES] == [0, 10, None, None, None, None, None, None]
