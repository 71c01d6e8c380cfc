"""A recorded virtqueue does what the one inside it does, against a driver, and its records say what that was."""

import pytest

from host.balloon.virtio_balloon import Outcome
from host.memory.discard_plan import DiscardPlan, Refusal
from host.recording.recorded_virtqueue import PARTS_MAX, RecordedVirtqueue, RingRecorder
from host.vhost_user.actions import StartRing
from host.virtqueue.ring_place import RingPlace
from host.virtqueue.virtqueue import Chain, DeviceVirtqueue, ReadGuest, RingFeatures
from host.virtqueue.virtqueue_formats import open_virtqueue
from protocol.errors import VirtqueueError
from protocol.memory import FileRange
from protocol.packed_ring import FRESH_BASE
from protocol.recording.notification import is_call_due
from protocol.recording.records import DISCARDED, PutBack, RangeFate, Record, TakenChain, UsedChain
from protocol.ring_formats import Ring
from protocol.split_ring import Descriptor
from protocol.virtio_balloon import BalloonQueue
from scripts.check.model.ring_memory import AnyDriver, AnyRingMemory, PackedRingMemory, RingMemory, halves

SIZE = 8
BLOCK = 4 << 20


class Recorded:
    """A driver, and a recorded device on the same ring. File offsets are guest addresses here."""

    def __init__(self, memory: AnyRingMemory, *, event_idx: bool = True) -> None:
        self.memory = memory
        packed = isinstance(memory, PackedRingMemory)
        self.driver: AnyDriver = halves(memory, event_idx=event_idx)[0]
        features = RingFeatures(event_idx=event_idx, indirect_desc=memory.tables is not None, packed=packed)
        nowhere = FileRange(0, 0, 0)
        self.action = StartRing(
            index=3,
            queue=BalloonQueue.REPORTING,
            place=RingPlace(size=SIZE, packed=packed, descriptor=nowhere, available=nowhere, used=nowhere),
            base=FRESH_BASE if packed else 0,
            features=features,
        )
        self.records: list[Record] = []
        recorder = RingRecorder(7, self.records.append, lambda place: place.offset)
        self.device = RecordedVirtqueue(recorder, _open, self.action, memory.device_view, memory.read_guest)

    def take(self) -> Chain:
        chain = self.device.pop()
        assert chain is not None
        return chain

    def chains(self) -> list[TakenChain]:
        return [record for record in self.records if isinstance(record, TakenChain)]

    def uses(self) -> list[UsedChain]:
        return [record for record in self.records if isinstance(record, UsedChain)]


def _open(action: StartRing, ring: Ring, read_guest: ReadGuest) -> DeviceVirtqueue:
    return open_virtqueue(ring, action.base, action.features, read_guest)


FORMATS: list[type[RingMemory] | type[PackedRingMemory]] = [RingMemory, PackedRingMemory]
BLOCKS = [(BLOCK, BLOCK), (2 * BLOCK, BLOCK), (5 * BLOCK, 4096)]


def outcome(*refused: tuple[Refusal, int, int], hold: bool = False) -> Outcome:
    plan = DiscardPlan(discards=[FileRange(0, address, length) for address, length in BLOCKS])
    for reason, address, length in refused:
        plan.refuse(reason, address, length)
    return Outcome(plan, hold=hold)


@pytest.mark.parametrize("kind", FORMATS)
def test_chain_is_recorded_as_it_was_read(kind: type[RingMemory] | type[PackedRingMemory]) -> None:
    recorded = Recorded(kind(SIZE))
    recorded.driver.add([(1 << 40, 4)], BLOCKS)
    chain = recorded.take()
    assert (chain.readable, chain.writable) == ([(1 << 40, 4)], BLOCKS)
    recorded.device.observe(chain, outcome((Refusal.UNALIGNED, 9, 100)))
    (record,) = recorded.chains()
    assert (record.session, record.ring, record.queue, record.head) == (7, 3, "reporting", chain.head)
    assert [(each.address, each.length) for each in record.descriptors] == [(1 << 40, 4), *BLOCKS]
    assert [each.flags & 3 for each in record.descriptors] == [1, 3, 3, 2]
    assert (record.table, record.indirect) == ((), ())
    assert record.ranges == (*[RangeFate(*block, DISCARDED) for block in BLOCKS], RangeFate(9, 100, "unaligned"))


@pytest.mark.parametrize("kind", FORMATS)
def test_indirect_table_is_recorded_as_it_was_read(kind: type[RingMemory] | type[PackedRingMemory]) -> None:
    recorded = Recorded(kind(SIZE, tables=SIZE, capacity=4))
    recorded.driver.add([], BLOCKS)
    chain = recorded.take()
    recorded.device.observe(chain, outcome())
    (record,) = recorded.chains()
    assert chain.indirect_table is not None
    assert record.table == chain.indirect_table
    assert [(each.address, each.length, each.flags & 2) for each in record.indirect] == [(*each, 2) for each in BLOCKS]
    (descriptor,) = record.descriptors
    assert (descriptor.address, descriptor.length) == chain.indirect_table
    assert descriptor.flags & 4


def test_discard_that_failed_is_not_recorded_as_done() -> None:
    recorded = Recorded(RingMemory(SIZE))
    recorded.driver.add([], BLOCKS)
    recorded.device.observe(recorded.take(), outcome((Refusal.DISCARD_FAILED, *BLOCKS[1])))
    (record,) = recorded.chains()
    assert record.ranges == (
        RangeFate(*BLOCKS[0], DISCARDED),
        RangeFate(*BLOCKS[2], DISCARDED),
        RangeFate(*BLOCKS[1], "discard_failed"),
    )


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_recorded_decision_to_call_follows_from_what_was_recorded(
    kind: type[RingMemory] | type[PackedRingMemory], event_idx: bool
) -> None:
    recorded = Recorded(kind(SIZE), event_idx=event_idx)
    wanted = []
    for number in range(5 * SIZE):
        recorded.driver.add([], [BLOCKS[0]] * (1 + number % 3))
        chain = recorded.take()
        recorded.device.observe(chain, outcome())
        recorded.device.add_used(chain.head, 0)
        wanted.append(recorded.device.needs_notification())
        used = recorded.driver.get_used()
        assert used is not None
        if number % 2:
            recorded.driver.enable_interrupt()
    uses = recorded.uses()
    assert [used.call for used in uses] == wanted
    packed = kind is PackedRingMemory
    assert wanted == [
        is_call_due(
            packed=packed,
            event_idx=event_idx,
            size=SIZE,
            old=used.old,
            new=used.new,
            event=used.event,
            flags=used.flags,
        )
        for used in uses
    ]
    assert (False in wanted) == event_idx
    assert [used.head for used in uses] == [chain.head for chain in recorded.chains()]


def test_used_chains_that_were_told_together_are_recorded_together() -> None:
    recorded = Recorded(RingMemory(SIZE))
    for _ in range(3):
        recorded.driver.add([], [BLOCKS[0]])
        chain = recorded.take()
        recorded.device.observe(chain, outcome())
        recorded.device.add_used(chain.head, 0)
    assert recorded.uses() == []
    assert recorded.device.needs_notification()
    assert [(used.head, used.old, used.new) for used in recorded.uses()] == [(0, 0, 3), (1, 0, 3), (2, 0, 3)]


def test_chain_that_is_put_back_leaves_a_record_only_if_it_has_one() -> None:
    recorded = Recorded(RingMemory(SIZE))
    recorded.driver.add([], [BLOCKS[0]])
    recorded.device.unpop(recorded.take())
    assert recorded.records == []
    chain = recorded.take()
    recorded.device.observe(chain, outcome(hold=True))
    recorded.device.unpop(chain)
    taken, put_back = recorded.records
    assert isinstance(taken, TakenChain)
    assert taken.held
    assert isinstance(put_back, PutBack)
    assert put_back.head == chain.head
    assert recorded.take() == chain


def test_what_was_read_of_a_broken_chain_is_recorded() -> None:
    memory = RingMemory(SIZE)
    recorded = Recorded(memory)
    memory.driver_view.write_descriptor(2, Descriptor(BLOCK, 16, 3, 2))
    memory.driver_view.avail[2] = 2
    memory.driver_view.avail[1] = 1
    with pytest.raises(VirtqueueError, match="a loop"):
        recorded.device.pop()
    (record,) = recorded.chains()
    assert record.head == 2
    assert [each.place for each in record.descriptors] == [2] * SIZE
    assert record.note.startswith("not a chain: descriptor chain 2 is a loop")


def test_chain_that_could_not_be_served_is_recorded() -> None:
    recorded = Recorded(RingMemory(SIZE))
    recorded.driver.add([(1 << 50, 4)], [])
    recorded.take()
    recorded.device.abandon()
    recorded.device.abandon()
    (record,) = recorded.chains()
    assert record.note == "not served"


def test_parts_of_a_hostile_chain_are_bounded() -> None:
    recorded = Recorded(RingMemory(SIZE))
    recorded.driver.add([], [BLOCKS[0]])
    chain = recorded.take()
    plan = DiscardPlan()
    for number in range(PARTS_MAX + 5):
        plan.refuse(Refusal.EMPTY, number, 0)
    recorded.device.observe(chain, Outcome(plan))
    (record,) = recorded.chains()
    assert len(record.ranges) == PARTS_MAX
    assert record.ranges_left_out == 5
