"""guest/balloon/free_page_hinting.py: what is sent in a round, when it ends, and when its blocks are free again."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from guest.balloon.free_page_hinting import FreePageHinting, Hint, HintingState, SendBlock, SendCommand
from guest.mm.page_alloc import PageAllocator
from guest.mm.pageblock import MAX_ORDER_NR_PAGES

BLOCKS = 16
PAGES = BLOCKS * MAX_ORDER_NR_PAGES
STOP, DONE = 0, 1


class Scene:
    """Hinting in a machine of 64 MiB."""

    def __init__(self, entries: int = 64) -> None:
        self.allocator = PageAllocator(PAGES)
        self.released: list[tuple[int, int]] = []
        self.hinting = FreePageHinting(
            self.allocator, entries, on_release=lambda pfn, pages: self.released.append((pfn, pages))
        )

    def send(self) -> list[Hint]:
        """Take all that is to be sent now."""
        return list(iter(self.hinting.next_hint, None))

    def use(self, hints: list[Hint]) -> None:
        for hint in hints:
            self.hinting.used(hint)

    def round(self, command_id: int) -> list[Hint]:
        """Run a whole round that fits the queue, all of it given back."""
        self.hinting.command_id_received(command_id)
        sent = self.send()
        self.use(sent)
        return sent


def blocks_of(hints: list[Hint]) -> list[int]:
    return [hint.pfn for hint in hints if isinstance(hint, SendBlock)]


def commands_of(hints: list[Hint]) -> list[int]:
    return [hint.command_id for hint in hints if isinstance(hint, SendCommand)]


@pytest.mark.parametrize("command_id", [STOP, DONE])
def test_hinting_without_a_round_sends_nothing(command_id: int) -> None:
    scene = Scene()
    scene.hinting.command_id_received(command_id)
    assert scene.send() == []
    assert scene.allocator.nr_free_pages() == PAGES


def test_round_is_the_id_then_all_free_blocks_then_stop() -> None:
    scene = Scene()
    scene.hinting.command_id_received(2)
    sent = scene.send()
    assert (sent[0], sent[-1]) == (SendCommand(2), SendCommand(STOP))
    blocks = blocks_of(sent)
    assert len(blocks) == len(set(blocks)) == len(sent) - 2 == scene.hinting.held_blocks
    assert all(pfn % MAX_ORDER_NR_PAGES == 0 for pfn in blocks)
    left = scene.allocator.nr_free_pages()
    assert left == PAGES - len(blocks) * MAX_ORDER_NR_PAGES
    assert left < 2 * MAX_ORDER_NR_PAGES  # all but what the watermark keeps
    assert scene.allocator.vmscan.kswapd_runs == 0
    assert scene.hinting.state is HintingState.IDLE


def test_blocks_are_kept_until_done_although_the_device_gave_them_back() -> None:
    scene = Scene()
    blocks = blocks_of(scene.round(2))
    scene.hinting.command_id_received(STOP)
    assert scene.send() == []
    assert scene.hinting.held_blocks == len(blocks)
    assert scene.hinting.command_id_received(DONE) == len(blocks)
    assert scene.allocator.nr_free_pages() == PAGES
    assert scene.released == [(pfn, MAX_ORDER_NR_PAGES) for pfn in reversed(blocks)]
    scene.allocator.validate()


def test_id_is_sent_once() -> None:
    scene = Scene()
    scene.round(7)
    scene.hinting.command_id_received(DONE)
    assert scene.round(7) == []
    assert commands_of(scene.round(8)) == [8, STOP]


def test_ring_entry_stays_free_for_the_end_of_the_round() -> None:
    scene = Scene(entries=4)
    scene.hinting.command_id_received(2)
    first = scene.send()
    assert len(first) == 3
    scene.hinting.command_id_received(STOP)
    assert scene.send() == [SendCommand(STOP)]
    assert scene.hinting.held_blocks == 2


def test_queue_of_one_entry_has_rounds_without_blocks() -> None:
    scene = Scene(entries=1)
    assert scene.round(2) == [SendCommand(2)]
    assert scene.round(2) == [SendCommand(STOP)]
    assert scene.hinting.state is HintingState.IDLE


def test_full_queue_goes_on_as_the_device_gives_back() -> None:
    scene = Scene(entries=4)
    scene.hinting.command_id_received(2)
    sent = scene.send()
    hints = list(sent)
    while scene.hinting.state is not HintingState.IDLE:
        scene.hinting.used(hints.pop(0))
        new = scene.send()
        sent += new
        hints += new
        assert len(hints) <= 4
    assert commands_of(sent) == [2, STOP]
    assert len(set(blocks_of(sent))) == scene.hinting.held_blocks >= BLOCKS - 2


@pytest.mark.parametrize("command_id", [STOP, DONE, 3])
def test_id_of_another_round_ends_the_round(command_id: int) -> None:
    scene = Scene(entries=4)
    scene.hinting.command_id_received(2)
    sent = scene.send()
    scene.hinting.command_id_received(command_id)
    scene.use(sent)
    then = scene.send()
    assert then[0] == SendCommand(STOP)
    assert commands_of(then) == ([STOP, 3] if command_id == 3 else [STOP])
    assert scene.hinting.held_blocks == len(blocks_of([*sent, *then])) * (command_id != DONE)


def test_command_waits_until_its_buffer_is_back() -> None:
    """Or the device would read the new id in the old one's place."""
    scene = Scene(entries=64)
    scene.hinting.command_id_received(2)
    start, *rest = scene.send()
    scene.hinting.command_id_received(3)
    assert scene.send() == []
    scene.use(rest)
    assert scene.send() == []
    scene.hinting.used(start)
    assert commands_of(scene.send()) == [3, STOP]


def test_shrinker_frees_only_blocks_that_were_given_back() -> None:
    scene = Scene()
    scene.hinting.command_id_received(2)
    sent = scene.send()
    assert scene.hinting.shrink(1) == 0
    scene.use(sent[1:4])
    assert scene.hinting.shrink(MAX_ORDER_NR_PAGES + 1) == 2 * MAX_ORDER_NR_PAGES
    assert [pfn for pfn, _ in scene.released] == blocks_of(sent[2:4])[::-1]
    assert scene.hinting.shrink(10 * MAX_ORDER_NR_PAGES) == MAX_ORDER_NR_PAGES
    assert scene.hinting.shrink(1) == 0


def test_block_freed_by_done_may_come_back_from_the_device_later() -> None:
    scene = Scene()
    scene.hinting.command_id_received(2)
    sent = scene.send()
    scene.hinting.command_id_received(DONE)
    scene.use(sent)
    assert scene.hinting.held_blocks == 0
    assert scene.hinting.shrink(1) == 0
    again = scene.round(3)
    assert sorted(blocks_of(again)) == sorted(blocks_of(sent))


def test_machine_in_need_takes_hinted_blocks_back() -> None:
    scene = Scene()
    scene.allocator.vmscan.register_shrinker(scene.hinting.shrink)
    blocks = len(blocks_of(scene.round(2)))
    pages = [scene.allocator.alloc_pages(0) for _ in range(PAGES // 2)]
    assert None not in pages
    assert 0 < scene.hinting.held_blocks < blocks


class AnyDevice(RuleBasedStateMachine):
    """Any ids at any time, buffers given back in any order: no block is lost, sent twice or free too early."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(entries=6)
        self.under_way: list[Hint] = []
        self.sent_ids: list[int] = []

    @rule(command_id=st.integers(0, 5))
    def command(self, command_id: int) -> None:
        self.scene.hinting.command_id_received(command_id)

    @rule(hints=st.integers(1, 8))
    def send(self, hints: int) -> None:
        for _ in range(hints):
            hint = self.scene.hinting.next_hint()
            if hint is None:
                return
            self.under_way.append(hint)
            if isinstance(hint, SendCommand):
                self.sent_ids.append(hint.command_id)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.under_way) - 1))
        self.scene.hinting.used(self.under_way.pop(place))

    @rule(pages=st.integers(1, 3 * MAX_ORDER_NR_PAGES))
    def shrink(self, pages: int) -> None:
        self.scene.hinting.shrink(pages)

    @invariant()
    def every_page_is_somewhere(self) -> None:
        held = self.scene.hinting.held_blocks * MAX_ORDER_NR_PAGES
        assert self.scene.allocator.nr_free_pages() + held == PAGES

    @invariant()
    def the_queue_is_not_overrun_and_rounds_are_closed(self) -> None:
        assert len(self.under_way) <= 6
        assert self.sent_ids[1::2] == [STOP] * (len(self.sent_ids) // 2)
        assert STOP not in self.sent_ids[::2]

    def teardown(self) -> None:
        self.scene.hinting.return_free_pages_to_mm()
        assert self.scene.allocator.nr_free_pages() == PAGES
        self.scene.allocator.validate()


TestAnyDevice = AnyDevice.TestCase
TestAnyDevice.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
