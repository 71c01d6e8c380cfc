"""Faults of the device: what it discards and when, and how it stops."""

from collections.abc import Iterator
from typing import Any

from host.balloon.free_page_hinting import FreePageHinting
from host.balloon.virtio_balloon import Outcome
from host.virtqueue.virtqueue import Chain
from protocol.virtio_balloon import BalloonQueue
from scripts.check.broken.fault import replaced
from scripts.check.ownership.actor import Point, Program
from scripts.check.ownership.fault import fault
from scripts.check.ownership.guest_side import TOTAL_PAGES
from scripts.check.ownership.pages import Pages
from scripts.check.ownership.shared_queue import Service, SharedQueue
from scripts.check.ownership.world import World

_LATE = ("late-discard", "discard-in-use", "discard-after-done")
_BESIDE = (*_LATE, "discard-not-given")


def _discards(world: World, change: Any) -> None:
    # Have `change(ranges)` say what is discarded in the place of the ranges of a chain.
    replaced(world.device, "discards", lambda original: lambda outcome: change(list(original(outcome))))


@fault("acknowledged-first", *_LATE)
def _(world: World) -> None:
    """The device gives a chain back, then discards its ranges."""
    device = world.device

    def serve_chain(queue: SharedQueue, service: Service, chain: Chain, outcome: Outcome) -> Program:
        yield (Point("acknowledge"),)
        device.acknowledge(queue, service, chain, outcome)
        for pages in device.discards(outcome):
            yield (Point("discard"),)
            device.discard(pages)

    replaced(device, "serve_chain", lambda original: serve_chain)


@fault("discarded-twice", *_LATE)
def _(world: World) -> None:
    """The device discards the last range of a chain once more after it has given it back."""
    device = world.device

    def make(original: Any) -> Any:
        def serve_chain(queue: SharedQueue, service: Service, chain: Chain, outcome: Outcome) -> Program:
            yield from original(queue, service, chain, outcome)
            for pages in list(device.discards(outcome))[-1:]:
                yield (Point("discard"),)
                device.discard(pages)

        return serve_chain

    replaced(device, "serve_chain", make)


@fault("one-page-too-many", *_BESIDE)
def _(world: World) -> None:
    """The page after each range goes, too."""
    _discards(world, lambda ranges: [Pages(at, min(length + 1, TOTAL_PAGES - at)) for at, length in ranges])


@fault("one-page-early", *_BESIDE)
def _(world: World) -> None:
    """Each range is discarded one page too far down."""
    _discards(world, lambda ranges: [Pages(max(at - 1, 0), length) for at, length in ranges])


@fault("rounded-outward", *_BESIDE)
def _(world: World) -> None:
    """Each range is rounded to the huge pages that it touches."""

    def change(ranges: list[Pages]) -> Iterator[Pages]:
        for pages in ranges:
            first = pages.first // 512 * 512
            yield Pages(first, -(-pages.end // 512) * 512 - first)

    _discards(world, change)


@fault("gaps-filled", *_BESIDE)
def _(world: World) -> None:
    """The ranges of a chain are joined over the gaps between them."""

    def change(ranges: list[Pages]) -> Iterator[Pages]:
        if ranges:
            first = min(pages.first for pages in ranges)
            yield Pages(first, max(pages.end for pages in ranges) - first)

    _discards(world, change)


@fault("deflate-discards", *_LATE)
def _(world: World) -> None:
    """A deflate discards, as an inflate does."""
    device = world.device

    def make(original: Any) -> Any:
        def judge(queue: SharedQueue, chain: Chain) -> Any:
            if queue.queue is BalloonQueue.DEFLATE:
                queue = device.queues[BalloonQueue.INFLATE]
            return original(queue, chain)

        return judge

    replaced(device, "judge", make)


@fault("acknowledged-twice", "double-acknowledgement")
def _(world: World) -> None:
    """The device gives each chain back twice."""
    device = world.device

    def make(original: Any) -> Any:
        def acknowledge(queue: SharedQueue, service: Service, chain: Chain, outcome: Outcome) -> None:
            original(queue, service, chain, outcome)
            original(queue, service, chain, outcome)

        return acknowledge

    replaced(device, "acknowledge", make)


@fault("put-back-and-acknowledged", *_LATE, "double-acknowledgement")
def _(world: World) -> None:
    """A device that is stopped gives the chain in hand back, but not in the base: it takes it again when it goes on."""
    device = world.device

    def serve_chain(queue: SharedQueue, service: Service, chain: Chain, outcome: Outcome) -> Program:
        for pages in device.discards(outcome):
            step = yield device.discard_points(service)
            if step.action == "put-back":
                service.ring.unpop(chain)
                break
            device.discard(pages)
        else:
            yield (Point("acknowledge"),)
        device.acknowledge(queue, service, chain, outcome)

    replaced(device, "serve_chain", lambda original: serve_chain)


@fault("stop-not-awaited", *_LATE, "acknowledgement-after-reset")
def _(world: World) -> None:
    """A request to stop or to reset is answered while workers have chains in hand."""
    replaced(world.device, "are_stopped", lambda original: lambda: True)


class _AnyRound(FreePageHinting):
    def accepts(self) -> bool:
        return True


@fault("hints-always", *_LATE)
def _(world: World) -> None:
    """Hinted pages are discarded under any command id, after DONE as well."""
    world.device.balloon.hinting = _AnyRound()


@fault("done-too-early", *_LATE)
def _(world: World) -> None:
    """DONE is shown while a worker is discarding a hinted block."""
    device = world.device
    replaced(device, "may_end_hints", lambda original: lambda: device.is_round_closed)
