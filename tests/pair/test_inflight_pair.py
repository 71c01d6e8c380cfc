"""A device that is killed between any two of its writes, and its successor: every chain comes back exactly once."""

import contextlib
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.inflight.inflight import PACKED_ENTRY, PACKED_HEADER, SPLIT_ENTRY, SPLIT_HEADER, region_bytes
from host.inflight.inflight_virtqueue import open_tracked
from host.virtqueue.virtqueue import DeviceVirtqueue, RingFeatures
from protocol.errors import VhostUserError, VirtqueueError
from protocol.packed_ring import FRESH_BASE, PackedRing
from scripts.check.model.ring_memory import BASE, AnyDriver, AnyRingMemory, PackedRingMemory, RingMemory

SIZE = 8


class Killed(Exception):
    """The device's process ends here."""


class Bytes:
    """A region in memory. Its owner is killed at write number ``fatal``, before it is made or after."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.fatal: int | None = None
        self.after = False
        self.writes = 0

    def flush(self) -> None:
        """Everything is stored already."""

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > len(self.data):
            raise VirtqueueError("cut short")
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.writes += 1
        if self.writes == self.fatal and not self.after:
            raise Killed
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data
        if self.writes == self.fatal:
            raise Killed

    def marks(self, *, packed: bool) -> list[int]:
        """Return the entries that are marked as in flight."""
        header, entry = (PACKED_HEADER, PACKED_ENTRY) if packed else (SPLIT_HEADER, SPLIT_ENTRY)
        entries = self.data[header.size : header.size + SIZE * entry.size]
        return [i for i, fields in enumerate(entry.iter_unpack(entries)) if fields[0]]

    def free_entries(self) -> set[int]:
        """Return the entries of a packed queue's free list, of as many steps as there are entries."""
        _, _, _, _, entry, *_ = PACKED_HEADER.unpack_from(self.data)
        found = set[int]()
        for _ in range(SIZE):
            found.add(entry)
            entry = PACKED_ENTRY.unpack_from(self.data, PACKED_HEADER.size + entry * PACKED_ENTRY.size)[1]
        return found


class Machine:
    """A ring with its driver and an inflight region, over which one device follows another."""

    def __init__(self, *, packed: bool, in_order: bool = False) -> None:
        self.packed = packed
        self.memory: AnyRingMemory = PackedRingMemory(SIZE) if packed else RingMemory(SIZE)
        self.driver: AnyDriver = self.memory.driver(in_order=in_order)
        self.region = Bytes(region_bytes(SIZE, packed=packed))
        self.features = RingFeatures(event_idx=False, indirect_desc=True, packed=packed, in_order=in_order)
        self.posted = count()
        self.served: list[int] = []
        self.returned: list[int] = []

    def device(self, *, base: int | None = None, recovers: bool = True) -> DeviceVirtqueue:
        """Open the ring as a new process does. A front-end after a crash may say any base: nonsense by default."""
        told = (FRESH_BASE if self.packed else 3) if base is None else base
        ring = self.memory.device_view
        return open_tracked(self.region, SIZE, ring, told, self.features, self.memory.read_guest, recovers=recovers)

    def post(self, descriptors: int = 1) -> None:
        """Make a chain available. Its first buffer's length is its number, plus one."""
        number = next(self.posted)
        self.driver.add((), [(BASE, number + 1), *[(BASE, 1)] * (descriptors - 1)])

    def serve(self, device: DeviceVirtqueue, hold: int = 0) -> None:
        """Serve all there is, giving chains back ``hold`` later than they were taken."""
        held: list[int] = []
        while (chain := device.pop()) is not None:
            self.served.append(chain.writable[0][1] - 1)
            held.append(chain.head)
            if len(held) > hold:
                device.add_used(held.pop(0), 0)
        for head in held:
            device.add_used(head, 0)

    def collect(self) -> int:
        """Take back what was used; return how many chains."""
        number = 0
        while self.driver.get_used() is not None:
            number += 1
        return number


def first_device(machine: Machine) -> DeviceVirtqueue:
    return machine.device(base=FRESH_BASE if machine.packed else 0)


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("hold", [0, 1])
def test_killed_at_any_write_every_chain_comes_back_exactly_once(
    packed: bool, in_order: bool, after: bool, hold: int
) -> None:
    for fatal in range(1, 40):
        machine = Machine(packed=packed, in_order=in_order)
        device = first_device(machine)
        for round_number in range(3):  # somewhere in the ring, not at its beginning
            machine.post(2)
            machine.serve(device)
            assert machine.collect() == 1, round_number
        machine.region.writes, machine.region.fatal, machine.region.after = 0, fatal, after
        for descriptors in (2, 1, 3):
            machine.post(descriptors)
        machine.served.clear()
        try:
            machine.serve(device, hold)
            survived = True
        except Killed:
            survived = False
        before = machine.collect()
        machine.region.writes, machine.region.fatal = 0, 1 + fatal % 9
        with contextlib.suppress(Killed):  # the successor does not live long either
            machine.serve(machine.device(), hold)
        machine.region.fatal = None
        before += machine.collect()
        machine.serve(machine.device())
        assert before + machine.collect() == 3, fatal
        assert machine.region.marks(packed=packed) == [], fatal
        assert not packed or len(machine.region.free_entries()) == SIZE, fatal
        assert set(machine.served) == {3, 4, 5}
        assert len(machine.served) <= 3 + 2 * (1 + hold)  # again only what the driver did not have back
        if survived:
            return
    raise AssertionError("there are more writes than were tried")


@pytest.mark.parametrize("packed", [False, True])
def test_chains_in_flight_alone_are_marked(packed: bool) -> None:
    machine = Machine(packed=packed)
    device = first_device(machine)
    for descriptors in (2, 3):
        machine.post(descriptors)
    assert machine.region.marks(packed=packed) == []
    first, second = device.pop(), device.pop()
    assert first is not None
    assert second is not None
    assert len(machine.region.marks(packed=packed)) == 2
    device.unpop(second)
    assert len(machine.region.marks(packed=packed)) == 1
    device.add_used(first.head, 0)
    assert machine.region.marks(packed=packed) == []
    machine.serve(device)
    assert machine.collect() == 2


@pytest.mark.parametrize("packed", [False, True])
def test_entry_of_a_chain_in_flight_reads_as_the_specification_says(packed: bool) -> None:
    machine = Machine(packed=packed)
    device = first_device(machine)
    machine.post(1)
    machine.serve(device)
    machine.post(2)
    chain = device.pop()
    assert chain is not None
    data = bytes(machine.region.data)
    if packed:
        assert PACKED_HEADER.unpack_from(data) == (0, 1, SIZE, 2, 2, 1, 1, 1, 1)
        first = PACKED_ENTRY.unpack_from(data, PACKED_HEADER.size)
        assert first == (1, 1, 1, 2, 2, chain.head, 3, 2, BASE)  # next 1, last 1, two of them, the second chain
        second = PACKED_ENTRY.unpack_from(data, PACKED_HEADER.size + PACKED_ENTRY.size)
        assert second[0] == 0
        assert second[5:] == (chain.head, 2, 1, BASE)
    else:
        assert SPLIT_HEADER.unpack_from(data) == (0, 1, SIZE, 0, 1)
        entry = SPLIT_ENTRY.unpack_from(data, SPLIT_HEADER.size + chain.head * SPLIT_ENTRY.size)
        assert entry == (1, 0, 2)


@pytest.mark.parametrize("packed", [False, True])
def test_region_that_was_never_written_goes_on_from_the_base(packed: bool) -> None:
    machine = Machine(packed=packed)
    plain = machine.memory.device()
    machine.post()
    chain = plain.pop()
    assert chain is not None
    plain.add_used(chain.head, 0)
    machine.post()
    device = machine.device(base=plain.base)
    machine.serve(device)
    assert machine.served == [1]
    assert machine.collect() == 2


@pytest.mark.parametrize("packed", [False, True])
def test_base_counts_and_old_marks_are_cleared_without_recovery(packed: bool) -> None:
    """A ring that was stopped in order goes on where it was stopped, with any content of the region."""
    machine = Machine(packed=packed)
    device = first_device(machine)
    machine.post()
    machine.serve(device)
    machine.post()
    chain = device.pop()
    assert chain is not None
    base = device.base
    device = machine.device(base=base, recovers=False)
    assert machine.region.marks(packed=packed) == []
    assert device.pop() is None
    assert device.base == base


def test_ring_larger_than_the_region_is_refused() -> None:
    machine = Machine(packed=False)
    with pytest.raises(VhostUserError, match="has room for 4"):
        open_tracked(
            machine.region, 4, machine.memory.device_view, 0, machine.features, machine.memory.read_guest, recovers=True
        )


def test_marks_that_the_ring_does_not_offer_in_this_order_are_refused() -> None:
    machine = Machine(packed=False)
    device = first_device(machine)
    machine.post()
    machine.post()
    device.pop()
    device.pop()
    heads = machine.region.marks(packed=False)
    at = SPLIT_HEADER.size + heads[0] * SPLIT_ENTRY.size
    machine.region.data[at : at + SPLIT_ENTRY.size] = SPLIT_ENTRY.pack(1, 0, 99)
    with pytest.raises(VhostUserError, match="disagree about what is in flight"):
        machine.device()


@pytest.mark.long
@pytest.mark.parametrize("packed", [False, True])
@settings(max_examples=300)
@given(data=st.data())
def test_hostile_region_is_refused_in_one_line_or_served_within_the_ring(packed: bool, data: st.DataObject) -> None:
    machine = Machine(packed=packed)
    size = len(machine.region.data)
    machine.region.data[:] = data.draw(st.binary(min_size=size, max_size=size))
    if data.draw(st.booleans(), label="good header"):
        machine.region.data[8:12] = (1).to_bytes(2, "little") + SIZE.to_bytes(2, "little")
        for at in range(12, 24):
            machine.region.data[at] &= data.draw(st.sampled_from([0, 1, 7]))
    machine.post(2)
    machine.post()
    said = ""
    try:
        device = machine.device()
        for _ in range(SIZE):
            chain = device.pop()
            if chain is not None:
                device.add_used(chain.head, 0)
    except (VhostUserError, VirtqueueError) as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [0, 7, 12, 31, 100])
def test_region_that_is_cut_short_is_refused(packed: bool, length: int) -> None:
    machine = Machine(packed=packed)
    first_device(machine)
    del machine.region.data[length:]
    with pytest.raises(VhostUserError, match="cut short"):
        machine.device()


@pytest.mark.parametrize("packed", [False, True])
def test_ring_that_is_full_of_one_chain_is_tracked_too(packed: bool) -> None:
    machine = Machine(packed=packed)
    device = first_device(machine)
    for _ in range(3):
        machine.post(SIZE)
        chain = device.pop()
        assert chain is not None
        assert len(machine.region.marks(packed=packed)) == 1
        device.add_used(chain.head, 0)
        assert machine.collect() == 1
    machine.post(SIZE)
    device.pop()
    machine.serve(machine.device())
    assert machine.collect() == 1
    assert isinstance(machine.memory.device_view, PackedRing) == packed
