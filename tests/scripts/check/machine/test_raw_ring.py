"""What a reason says of a ring whose buffers stay away."""

import pytest

from protocol.ring_formats import RingLayout
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.memory_file import MemoryFile
from scripts.check.machine.raw_ring import Raw, put_chain, require_back, ring_words
from scripts.check.verdict import Failed, NotReturned


@pytest.mark.parametrize("packed", [False, True])
def test_buffer_that_stays_away_is_shown_by_its_bytes(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.check.machine.raw_ring.becomes_true", lambda condition, _: condition())
    memory = MemoryFile()
    queue = DriverQueue(
        memory, 0, 1, None, RingLayout(8, packed), 0, send_kick=lambda: None, take_interrupt=lambda: False
    )
    put_chain(queue, [Raw(0x1122334455667788, 0x1000, 2)])
    shown = "8877665544332211" + "00100000" + ("00008200" if packed else "02000000")
    with pytest.raises(Failed) as failed:
        require_back(queue, "the chain", "S-17")
    indices = "" if packed else "avail.idx is 1, used.idx 0, "
    assert failed.value.reason == f"the chain does not come back; {indices}descriptor 0 is {shown}"
    assert ring_words(queue).endswith(shown)
    with pytest.raises(NotReturned, match=r"0 of 1 buffers came back within 0 s" + ("" if packed else ", avail.idx")):
        queue.collect(seconds=0)
    queue.close()
    memory.close()
