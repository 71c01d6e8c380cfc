"""Both halves of a virtqueue over one memory, in each format: requests are not lost, doubled or reordered."""

import random
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guest.virtqueue.virtqueue import QueueFullError, UsedBuffer
from host.virtqueue.virtqueue import Buffer, Chain, LongChain
from scripts.check.model.ring_memory import AnyRingMemory, PackedRingMemory, RingMemory, halves

SIZES = st.integers(1, 256)
BEGINNINGS = st.one_of(st.just(0), st.integers(65536 - 300, 65535), st.integers(0, 200000))
BUFFERS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
BUFFER_LISTS = st.lists(BUFFERS, max_size=5)


class VirtqueueMachine(RuleBasedStateMachine):
    """Requests and completions in any order, against a model of plain queues."""

    @initialize(
        size=st.one_of(st.integers(1, 9), SIZES),
        begin=BEGINNINGS,
        packed=st.booleans(),
        event_idx=st.booleans(),
        in_order=st.booleans(),
        mixed=st.booleans(),
        tables=st.integers(0, 4),
        capacity=st.integers(1, 4),
    )
    def begin(
        self,
        size: int,
        begin: int,
        packed: bool,
        event_idx: bool,
        in_order: bool,
        mixed: bool,
        tables: int,
        capacity: int,
    ) -> None:
        self.memory: AnyRingMemory
        if packed:
            self.memory = PackedRingMemory(size, tables=tables, capacity=capacity)
        else:
            size = 1 << size.bit_length() - 1
            self.memory = RingMemory(size, tables=tables, capacity=capacity)
        self.capacity, self.in_order, self.event_idx = capacity, in_order, event_idx
        self.own = 1 if mixed and not packed else 0
        self.driver, self.device = halves(self.memory, event_idx=event_idx, in_order=in_order, begin=begin, mixed=mixed)
        self.free, self.free_tables = size, tables
        self.available: deque[tuple[int, list[Buffer], list[Buffer]]] = deque()
        self.in_device: list[Chain] = []
        self.held_back: dict[int, int] = {}
        self.last_popped: Chain | None = None
        self.order: deque[int] = deque()
        self.used: deque[UsedBuffer] = deque()
        self.costs: dict[int, tuple[int, int]] = {}

    @rule(readable=BUFFER_LISTS, writable=BUFFER_LISTS)
    def add(self, readable: list[Buffer], writable: list[Buffer]) -> None:
        count = len(readable) + len(writable)
        if count == 0:
            return
        indirect = self.free_tables > 0 and 1 < count <= self.capacity + self.own
        descriptors, tables = (1 + self.own, 1) if indirect else (count, 0)
        if descriptors > self.free:
            with pytest.raises(QueueFullError):
                self.driver.add(readable, writable)
            return
        head = self.driver.add(readable, writable)
        assert head not in self.costs
        self.costs[head] = (descriptors, tables)
        self.free -= descriptors
        self.free_tables -= tables
        self.available.append((head, readable, writable))

    @rule(longest=st.integers(0, 12))
    def pop(self, longest: int) -> None:
        base = self.device.base
        try:
            chain = self.device.pop(longest)
        except LongChain:
            assert self.device.base == base
            chain = self.device.pop()
            assert chain is not None
            assert chain.buffers > longest
        else:
            assert chain is None or chain.buffers <= longest
        if not self.available:
            assert chain is None
            return
        assert chain is not None
        head, readable, writable = self.available.popleft()
        assert (chain.head, chain.readable, chain.writable) == (head, readable, writable)
        assert (chain.indirect_table is not None) == (self.costs[head][1] == 1)
        self.in_device.append(chain)
        self.last_popped = chain
        self.order.append(head)

    @precondition(lambda self: self.in_device and self.in_device[-1] is self.last_popped)
    @rule()
    def unpop(self) -> None:
        chain = self.in_device.pop()
        self.device.unpop(chain)
        self.available.appendleft((chain.head, chain.readable, chain.writable))
        self.order.pop()

    @precondition(lambda self: self.in_device)
    @rule(choice=st.randoms(use_true_random=False), length=st.integers(0, 2**32 - 1))
    def complete(self, choice: random.Random, length: int) -> None:
        head = self.in_device.pop(choice.randrange(len(self.in_device))).head
        self.device.add_used(head, length)
        if not self.in_order:
            self.order.remove(head)
            self.used.append(UsedBuffer(head, length))
            return
        self.held_back[head] = length
        while self.order and self.order[0] in self.held_back:
            first = self.order.popleft()
            self.used.append(UsedBuffer(first, self.held_back.pop(first)))

    @rule()
    def collect(self) -> None:
        taken = self.driver.get_used()
        if not self.used:
            assert taken is None
            return
        assert taken == self.used.popleft()
        descriptors, tables = self.costs.pop(taken.head)
        self.free += descriptors
        self.free_tables += tables

    @rule()
    def going_to_sleep_tells_whether_something_waits(self) -> None:
        assert self.driver.enable_interrupt() == bool(self.used)
        assert self.device.enable_notification() == bool(self.available)

    @precondition(lambda self: not self.order)
    @rule()
    def the_device_is_replaced(self) -> None:
        # Not while it has chains in hand: what it does with those when it stops is not the ring's business.
        token = self.device.token
        self.device = self.memory.device(event_idx=self.event_idx, in_order=self.in_order, base=self.device.base)
        assert self.device.is_as_left(token)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert self.driver.outstanding == len(self.available) + len(self.order) + len(self.used)


TestVirtqueueMachine = pytest.mark.long(VirtqueueMachine.TestCase)
TestVirtqueueMachine.settings = settings(max_examples=150, stateful_step_count=60)


FORMATS = pytest.mark.parametrize("memory_of", [RingMemory, PackedRingMemory], ids=["split", "packed"])


@pytest.mark.long
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event index"])
@FORMATS
def test_indices_wrap_past_65535_with_a_full_ring(memory_of: type[AnyRingMemory], event_idx: bool) -> None:
    memory = memory_of(256, tables=2, capacity=2)
    driver, device = halves(memory, event_idx=event_idx)
    sent = served = collected = 0
    while collected < 65536 + 512:
        while driver.outstanding < 256:
            driver.add([(sent, 1)], [])
            sent += 1
        assert driver.needs_kick() or event_idx
        while (chain := device.pop()) is not None:
            assert chain.readable == [(served, 1)]
            device.add_used(chain.head, served)
            served += 1
        device.enable_notification()
        while (used := driver.get_used()) is not None:
            assert used.length == collected
            collected += 1
    assert sent == served == collected


@FORMATS
def test_largest_ring_is_filled_and_emptied(memory_of: type[AnyRingMemory]) -> None:
    memory = memory_of(32768)
    driver, device = halves(memory, event_idx=True)
    for number in range(32768):
        driver.add([], [(number, 4096)])
    with pytest.raises(QueueFullError):
        driver.add([], [(0, 1)])
    for number in range(32768):
        chain = device.pop()
        assert chain is not None
        assert chain.writable == [(number, 4096)]
        device.add_used(chain.head, 0)
    assert device.pop() is None
    for _ in range(32768):
        assert driver.get_used() is not None
    assert driver.get_used() is None
    assert driver.outstanding == 0


@FORMATS
def test_chain_may_be_as_long_as_the_largest_ring(memory_of: type[AnyRingMemory]) -> None:
    memory = memory_of(32768)
    driver, device = halves(memory)
    buffers = [(number << 12, 4096) for number in range(32768)]
    driver.add([], buffers)
    with pytest.raises(LongChain):
        device.pop(32767)
    chain = device.pop(32768)
    assert chain is not None
    assert chain.writable == buffers


@FORMATS
def test_busy_device_is_kicked_once_for_many_requests_with_the_event_index(memory_of: type[AnyRingMemory]) -> None:
    memory = memory_of(64)
    driver, device = halves(memory, event_idx=True)
    assert not device.enable_notification()
    kicks = 0
    for number in range(64):
        driver.add([(number, 1)], [])
        kicks += driver.needs_kick()
    assert kicks == 1


@FORMATS
def test_request_after_the_device_slept_kicks_again(memory_of: type[AnyRingMemory]) -> None:
    # A device that never moves its event index hears of the first report and of no other.
    memory = memory_of(4)
    driver, device = halves(memory, event_idx=True)
    for number in range(10):
        assert not device.enable_notification()
        driver.add([(number, 1)], [])
        assert driver.needs_kick()
        chain = device.pop()
        assert chain is not None
        device.add_used(chain.head, 0)
        assert driver.get_used() is not None


@FORMATS
def test_requests_all_kick_and_completions_all_interrupt_without_the_event_index(
    memory_of: type[AnyRingMemory],
) -> None:
    memory = memory_of(4)
    driver, device = halves(memory)
    for number in range(4):
        driver.add([(number, 1)], [])
        assert driver.needs_kick()
    while (chain := device.pop()) is not None:
        device.add_used(chain.head, 0)
        assert device.needs_notification()


@FORMATS
def test_device_that_restarts_goes_on_where_it_stopped(memory_of: type[AnyRingMemory]) -> None:
    memory = memory_of(4, tables=1, capacity=3)
    driver, device = halves(memory)
    for number in range(3):
        driver.add([(number, 1), (number, 2)] if number == 1 else [(number, 1)], [])
    first = device.pop()
    assert first is not None
    device.add_used(first.head, 0)
    restarted = memory.device(base=device.base)
    served = []
    while (chain := restarted.pop()) is not None:
        served.append(chain.readable[0][0])
        restarted.add_used(chain.head, 0)
    assert served == [1, 2]
    assert [driver.get_used() is not None for _ in range(4)] == [True, True, True, False]
