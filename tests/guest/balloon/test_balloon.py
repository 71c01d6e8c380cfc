"""guest/balloon/balloon.py: the steps to the balloon's target, and its deflation when memory runs out."""

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from guest.balloon.balloon import OUT_OF_PUFF_SECONDS, Balloon, OutOfPuff, Step, TellHost, UpdateSize
from guest.mm.page_alloc import PageAllocator
from guest.mm.page_flags import ALLOCATED_ORDER
from guest.mm.pageblock import MigrateType
from protocol.virtio_balloon import BalloonQueue

MUST_TELL_HOST, DEFLATE_ON_OOM = 1 << 0, 1 << 2
PAGES = 4096


class Scene:
    """A balloon in a machine of 16 MiB, and everything that its device was told."""

    def __init__(self, features: int = 0, *, pages: int = PAGES) -> None:
        self.allocator = PageAllocator(pages)
        self.wakes = 0
        self.released: list[array[int]] = []
        self.balloon = Balloon(self.allocator, self._on_work, on_release=self.released.append)
        self.features = features
        self.balloon.attach(features, 0, 0)

    def _on_work(self) -> None:
        self.wakes += 1

    def run(self, *, steps: int = 10_000) -> list[Step]:
        """Do all steps; return them."""
        done: list[Step] = []
        while len(done) < steps and (step := self.balloon.next_step()) is not None:
            done.append(step)
            self.balloon.done(step)
        return done

    def message(self) -> TellHost:
        """Return the next step, which must be a message."""
        step = self.balloon.next_step()
        assert isinstance(step, TellHost)
        return step


def free_pages_of(scene: Scene) -> int:
    return scene.allocator.nr_free_pages()


def test_balloon_of_the_right_size_has_nothing_to_do() -> None:
    scene = Scene()
    assert scene.run() == []
    assert scene.balloon.num_pages == 0


def test_balloon_inflates_by_256_pages_a_message_and_writes_its_size_after_each() -> None:
    scene = Scene()
    scene.balloon.set_target(600)
    steps = scene.run()
    messages = [step for step in steps if isinstance(step, TellHost)]
    assert [len(message.pfns) for message in messages] == [256, 256, 88]
    assert {message.queue for message in messages} == {BalloonQueue.INFLATE}
    assert steps[1::2] == [UpdateSize(256), UpdateSize(512), UpdateSize(600)]
    pfns = [pfn for message in messages for pfn in message.pfns]
    assert len(set(pfns)) == 600
    assert all(ALLOCATED_ORDER[scene.allocator.mem_map[pfn]] == 0 for pfn in pfns)
    assert free_pages_of(scene) == PAGES - 600


def test_page_frame_numbers_are_four_bytes_as_the_device_reads_them() -> None:
    scene = Scene()
    scene.balloon.set_target(3)
    pfns = scene.message().pfns
    assert pfns.tobytes() == b"".join(pfn.to_bytes(4, "little") for pfn in pfns)


def test_message_waits_for_the_acknowledgement_of_the_last() -> None:
    scene = Scene()
    scene.balloon.set_target(300)
    first = scene.message()
    assert scene.balloon.next_step() == first
    assert scene.balloon.num_pages == 256


def test_newest_page_leaves_first() -> None:
    scene = Scene()
    scene.balloon.set_target(300)
    into = [pfn for step in scene.run() if isinstance(step, TellHost) for pfn in step.pfns]
    scene.balloon.set_target(0)
    out = [pfn for step in scene.run() if isinstance(step, TellHost) for pfn in step.pfns]
    assert out == into[::-1]
    assert free_pages_of(scene) == PAGES
    scene.allocator.validate()


def test_page_taken_first_leaves_first_within_a_message() -> None:
    """Linux turns the pages of a message round twice: as they go into the balloon, and as they come out."""
    scene, twin = Scene(), PageAllocator(PAGES)
    taken = [twin.alloc_pages(0, MigrateType.MOVABLE) for _ in range(5)]
    scene.balloon.set_target(5)
    scene.run()
    scene.balloon.set_target(3)
    assert scene.message().pfns.tolist() == taken[:2]


@pytest.mark.parametrize("features", [0, MUST_TELL_HOST])
def test_page_is_free_only_when_its_deflation_was_acknowledged(features: int) -> None:
    scene = Scene(features)
    scene.balloon.set_target(10)
    scene.run()
    scene.balloon.set_target(4)
    message = scene.message()
    assert (message.queue, len(message.pfns)) == (BalloonQueue.DEFLATE, 6)
    assert free_pages_of(scene) == PAGES - 10
    assert scene.released == []
    scene.balloon.done(message)
    assert free_pages_of(scene) == PAGES - 4
    assert scene.released == [message.pfns]
    assert scene.run() == [UpdateSize(4)]


def test_new_target_counts_from_the_next_message_on() -> None:
    scene = Scene()
    scene.balloon.set_target(1000)
    message = scene.message()
    scene.balloon.set_target(100)
    scene.balloon.done(message)
    queues = [step.queue for step in scene.run() if isinstance(step, TellHost)]
    assert queues == [BalloonQueue.DEFLATE]
    assert scene.balloon.num_pages == 100


def test_out_of_puff_it_tells_what_it_has_and_waits_and_tries_again() -> None:
    scene = Scene()
    scene.balloon.set_target(2 * PAGES)
    steps = scene.run(steps=200)
    assert steps[-1] == OutOfPuff(OUT_OF_PUFF_SECONDS)
    pause = steps.index(OutOfPuff(OUT_OF_PUFF_SECONDS))
    assert steps[pause - 1] == UpdateSize(scene.balloon.num_pages)
    assert 0 < free_pages_of(scene) < 256  # down to the minimum watermark and no further
    assert set(steps[pause:]) == {OutOfPuff(OUT_OF_PUFF_SECONDS)}
    assert scene.allocator.vmscan.out_of_memory_events == 0


def test_memory_that_comes_free_meanwhile_is_taken() -> None:
    scene = Scene()
    held = [scene.allocator.alloc_pages(9) for _ in range(3)]
    scene.balloon.set_target(2 * PAGES)
    scene.run(steps=100)
    before = scene.balloon.num_pages
    for pfn in held:
        assert pfn is not None
        scene.allocator.free_pages(pfn, 9)
    scene.run(steps=100)
    assert scene.balloon.num_pages == before + 3 * 512


# --- When memory runs out ---


def inflated(features: int, pages: int = 600) -> Scene:
    scene = Scene(features)
    scene.balloon.set_target(pages)
    scene.run()
    scene.wakes = 0
    return scene


def test_balloon_without_deflate_on_oom_keeps_its_pages() -> None:
    scene = inflated(0)
    assert scene.balloon.out_of_memory() == 0
    assert (scene.balloon.num_pages, scene.wakes) == (600, 0)


def test_out_of_memory_256_pages_are_free_at_once_and_the_device_is_told_next() -> None:
    scene = inflated(DEFLATE_ON_OOM)
    assert scene.balloon.out_of_memory() == 256
    assert free_pages_of(scene) == PAGES - 600 + 256
    assert scene.wakes == 1
    message, size = scene.run()
    assert isinstance(message, TellHost)
    assert (message.queue, message.pfns) == (BalloonQueue.DEFLATE, scene.released[0])
    assert size == UpdateSize(344)


def test_device_that_must_be_told_is_told_before_the_pages_are_free() -> None:
    scene = inflated(DEFLATE_ON_OOM | MUST_TELL_HOST)
    assert scene.balloon.out_of_memory() == 256
    assert free_pages_of(scene) == PAGES - 600
    message = scene.message()
    assert len(message.pfns) == 256
    scene.balloon.done(message)
    assert free_pages_of(scene) == PAGES - 344
    assert scene.run() == [UpdateSize(344)]


def test_balloon_gives_until_it_is_empty_and_does_not_take_again_by_itself() -> None:
    scene = inflated(DEFLATE_ON_OOM)
    assert [scene.balloon.out_of_memory() for _ in range(4)] == [256, 256, 88, 0]
    steps = scene.run()
    assert [len(step.pfns) for step in steps if isinstance(step, TellHost)] == [256, 256, 88]
    assert (scene.balloon.num_pages, steps[-1]) == (0, UpdateSize(0))
    scene.balloon.set_target(600)
    scene.run()
    assert scene.balloon.num_pages == 600


def test_pages_on_their_way_in_are_not_given_up() -> None:
    """The device may write to them until it has acknowledged them."""
    scene = Scene(DEFLATE_ON_OOM)
    scene.balloon.set_target(100)
    scene.message()
    assert scene.balloon.out_of_memory() == 0


def test_page_freed_early_is_told_before_it_is_given_again() -> None:
    scene = inflated(DEFLATE_ON_OOM, 256)
    scene.balloon.out_of_memory()
    scene.balloon.set_target(256)
    queues = [step.queue for step in scene.run() if isinstance(step, TellHost)]
    assert queues == [BalloonQueue.DEFLATE, BalloonQueue.INFLATE]


# --- Another device ---


@pytest.mark.parametrize("target", [0, 600])
def test_balloon_stays_inflated_and_tells_the_next_device_its_size(target: int) -> None:
    scene = inflated(0)
    scene.balloon.attach(0, 0, target)
    assert scene.balloon.next_step() == UpdateSize(600)
    scene.run()
    assert scene.balloon.num_pages == target


@pytest.mark.parametrize(("start", "target"), [(0, 300), (300, 0)])
def test_message_without_an_answer_is_told_again(start: int, target: int) -> None:
    scene = inflated(0, start)
    scene.balloon.set_target(target)
    message = scene.message()
    scene.balloon.attach(0, 0, target)
    assert scene.message() == message
    scene.run()
    assert scene.balloon.num_pages == target
    assert free_pages_of(scene) == PAGES - target


# --- Any sequence ---


class AnySequence(RuleBasedStateMachine):
    """Targets, shortages, other devices and other users of memory, in any order: no page is lost or there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(DEFLATE_ON_OOM)
        self.balloon = self.scene.balloon
        self.step: Step | None = None
        self.device: set[int] = set()
        self.actual = 0
        self.others: list[int] = []

    @rule(pages=st.integers(0, 1500))
    def retarget(self, pages: int) -> None:
        self.balloon.set_target(pages)

    @rule(steps=st.integers(1, 20))
    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.step = self.step or self.balloon.next_step()
            if self.step is None:
                return
            self.acknowledge(self.step)
            self.balloon.done(self.step)
            self.step = None

    def acknowledge(self, step: Step) -> None:
        if isinstance(step, UpdateSize):
            self.actual = step.actual
        elif isinstance(step, TellHost) and step.queue is BalloonQueue.INFLATE:
            assert self.device.isdisjoint(step.pfns)
            self.device.update(step.pfns)
        elif isinstance(step, TellHost):
            assert self.device.issuperset(step.pfns)
            self.device.difference_update(step.pfns)

    @rule()
    def begin_a_step(self) -> None:
        self.step = self.step or self.balloon.next_step()

    @rule(features=st.sampled_from([0, DEFLATE_ON_OOM, MUST_TELL_HOST, DEFLATE_ON_OOM | MUST_TELL_HOST]))
    def another_device(self, features: int) -> None:
        # It knows of no page; but the model goes on with what the old one had acknowledged.
        self.step = None
        self.actual = 0
        self.balloon.attach(features, 0, self.balloon.num_pages)

    @rule()
    def out_of_memory(self) -> None:
        before = self.scene.allocator.nr_free_pages()
        given = self.balloon.out_of_memory()
        assert self.scene.allocator.nr_free_pages() - before in (0, given)

    @precondition(lambda self: self.scene.allocator.nr_free_pages() > 1000)
    @rule()
    def allocate(self) -> None:
        pfn = self.scene.allocator.alloc_pages(6)
        if pfn is not None:
            self.others.append(pfn)

    @precondition(lambda self: self.others)
    @rule()
    def free(self) -> None:
        self.scene.allocator.free_pages(self.others.pop(), 6)

    @invariant()
    def every_page_is_somewhere(self) -> None:
        allocator = self.scene.allocator
        assert allocator.nr_free_pages() + self.balloon.num_pages + (len(self.others) << 6) == PAGES

    def teardown(self) -> None:
        self.work(1000)
        assert self.balloon.next_step() is None
        assert self.balloon.num_pages == len(self.device) == self.actual
        self.every_page_is_somewhere()
        self.scene.allocator.validate()


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
