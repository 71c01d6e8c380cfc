"""guest/balloon/balloon_worker.py against a device that a test scripts: what is in guest memory when, and silence."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any, Final, cast

import pytest

from guest.balloon.balloon_worker import BalloonWorker
from guest.machine import Machine
from guest.mm.page_alloc import PageAllocator
from guest.ram import GuestRam
from guest.vhost_user.attachment import Attachment
from guest.virtqueue.virtqueue import Buffer
from protocol.balloon_config import BalloonConfig
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.process.events import EventLog
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue, queue_order
from tests.harness.processes import DEADLINE

PAGES: Final = 4096
STATS: Final = feature_mask(BalloonFeature.STATS_VQ)
HINT: Final = feature_mask(BalloonFeature.FREE_PAGE_HINT)

Answer = asyncio.Future[int | None]
Requests = asyncio.Queue[tuple[BalloonQueue, bytes, list[Buffer], Answer]]


class FakeQueue:
    """One of the device's queues; what is posted goes to ``requests``."""

    def __init__(self, kind: BalloonQueue, ram: GuestRam, requests: Requests) -> None:
        self._kind = kind
        self._ram = ram
        self._requests = requests

    def post(self, readable: Sequence[Buffer] = (), writable: Sequence[Buffer] = ()) -> Answer:
        data = b"".join(bytes(self._ram.view(address, length)) for address, length in readable)
        answer: Answer = asyncio.get_running_loop().create_future()
        self._requests.put_nowait((self._kind, data, list(writable), answer))
        return answer


class FakeAttachment:
    """A device that answers when the test says so. Every request is a queue, what could be read, what may be written,
    and the future of its answer."""

    def __init__(self, ram: GuestRam, features: int = 0, *, num_pages: int = 0, queue_size: int = 4) -> None:
        self.features = features
        self.queue_size = queue_size
        self.config = BalloonConfig(num_pages=num_pages)
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.requests: Requests = asyncio.Queue()
        self.queues = {kind: FakeQueue(kind, ram, self.requests) for kind in queue_order(features)}
        self.written: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    async def write_config(self, offset: int, data: bytes) -> None:
        self.written.put_nowait((offset, data))


class Scene:
    """A worker with its machine of 16 MiB, and its events."""

    def __init__(self) -> None:
        self.ram = GuestRam(PAGES * PAGE_SIZE)
        self._stream = StringIO()
        self.allocator = PageAllocator(PAGES)
        machine = Machine(self.allocator, self.ram, lambda _: None, lambda *_: None)
        self.worker = BalloonWorker(machine, self.ram, EventLog(self._stream, lambda: 0.0), lambda: 0)
        self.free_pages = self.allocator.nr_free_pages()

    def attach(self, features: int = 0, *, num_pages: int = 0) -> FakeAttachment:
        attachment = FakeAttachment(self.ram, features, num_pages=num_pages)
        self.worker.attach(cast(Attachment, attachment))
        return attachment

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@asynccontextmanager
async def running() -> AsyncIterator[Scene]:
    """Run a worker; nothing may be left in use of its memory."""
    scene = Scene()
    task = asyncio.create_task(scene.worker.run())
    async with asyncio.timeout(DEADLINE):
        yield scene
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    scene.ram.close()


def test_machine_without_a_page_has_no_driver() -> None:
    ram = GuestRam(16 * PAGE_SIZE)
    machine = Machine(PageAllocator(16), ram, lambda _: None, lambda *_: None)
    while machine.allocator.alloc_pages(0) is not None:
        pass
    with pytest.raises(UsageError, match="too little memory for the balloon driver"):
        BalloonWorker(machine, ram, EventLog(None, lambda: 0.0), lambda: 0)
    ram.close()


@pytest.mark.asyncio
async def test_page_frame_numbers_are_in_guest_memory_and_the_size_follows() -> None:
    async with running() as scene:
        device = scene.attach(num_pages=300)
        told = b""
        for pages in (256, 44):
            queue, data, writable, answer = await device.requests.get()
            assert (queue, len(data), writable) == (BalloonQueue.INFLATE, 4 * pages, [])
            told += data
            answer.set_result(0)
            assert await device.written.get() == (4, len(told[::4]).to_bytes(4, "little"))
        assert len({told[at : at + 4] for at in range(0, len(told), 4)}) == 300
        assert scene.worker.balloon_bytes == 300 * PAGE_SIZE


@pytest.mark.asyncio
@pytest.mark.parametrize("gone", [True, False], ids=["the back-end is gone", "the device was reset"])
async def test_message_without_an_answer_is_told_to_the_next_device(gone: bool) -> None:
    async with running() as scene:
        device = scene.attach(num_pages=10)
        _, first, _, answer = await device.requests.get()
        if gone:
            device.lost.set_result("gone")
        answer.set_result(None)
        for _ in range(10):
            await asyncio.sleep(0)
        assert device.requests.empty()
        assert device.written.empty()
        scene.worker.detach()
        assert scene.allocator.nr_free_pages() == scene.free_pages - 10
        after = scene.attach(num_pages=10)
        _, again, _, answer = await after.requests.get()
        assert again == first
        answer.set_result(0)


@pytest.mark.asyncio
async def test_statistics_buffer_is_the_same_and_filled_anew_each_time() -> None:
    async with running() as scene:
        device = scene.attach(STATS)
        queue, before, _, answer = await device.requests.get()
        assert queue is BalloonQueue.STATS
        assert len(before) % 10 == 0
        pfn = scene.allocator.alloc_pages(4)
        assert pfn is not None
        assert device.requests.empty()
        answer.set_result(0)
        _, after, _, _ = await device.requests.get()
        assert before[::10] == after[::10]
        assert before != after
        assert [event["event"] for event in scene.events()] == ["statistics"]
        device.lost.set_result("gone")
        scene.worker.detach()


@pytest.mark.asyncio
async def test_round_of_hinting_waits_for_a_full_queue() -> None:
    async with running() as scene:
        device = scene.attach(HINT)
        scene.worker.config_changed(BalloonConfig(free_page_hint_cmd_id=5))
        under_way = [await device.requests.get() for _ in range(3)]
        assert [data for _, data, _, _ in under_way] == [(5).to_bytes(4, "little"), b"", b""]
        assert [length for _, _, writable, _ in under_way for _, length in writable] == [4 << 20] * 2
        assert device.requests.empty()
        for _, _, _, answer in under_way:
            answer.set_result(0)
        *_, stop = [await device.requests.get() for _ in range(2)]
        assert stop[1] == bytes(4)
        scene.worker.config_changed(BalloonConfig(free_page_hint_cmd_id=1))
        assert scene.allocator.nr_free_pages() == scene.free_pages
        states = [(event["state"], event["command_id"], event["bytes"] >> 20) for event in scene.events()]
        assert states == [("start", 5, 0), ("stop", 5, 12), ("done", 5, 12)]


@pytest.mark.asyncio
async def test_hinted_blocks_are_free_when_the_device_has_gone() -> None:
    async with running() as scene:
        device = scene.attach(HINT)
        scene.worker.config_changed(BalloonConfig(free_page_hint_cmd_id=2))
        under_way = [await device.requests.get() for _ in range(3)]
        assert scene.allocator.nr_free_pages() < scene.free_pages
        device.lost.set_result("gone")
        for _, _, _, answer in under_way:
            answer.set_result(None)
        scene.worker.detach()
        assert scene.allocator.nr_free_pages() == scene.free_pages
        assert scene.allocator.vmscan.shrink(1) == 0
