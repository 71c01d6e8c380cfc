"""One good range beside a bad one."""

from protocol.memory import PAGE_SIZE
from tests.end_to_end.conftest import Scene
from tests.harness.virtual_machine import DATA_AT


def test_unaligned_range_is_refused_and_the_one_beside_it_discarded(scene: Scene) -> None:
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 4 * PAGE_SIZE)
    machine.report((DATA_AT, PAGE_SIZE), (DATA_AT + PAGE_SIZE + 512, PAGE_SIZE))
    assert machine.ram.pages() == {DATA_AT + n * PAGE_SIZE for n in (1, 2, 3)}
    assert not machine.ram.spoilt_pages()
    scene.expect(machine, ("refused", "unaligned"))
