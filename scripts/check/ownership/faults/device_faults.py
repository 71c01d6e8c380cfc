"""Faults of the device: what it discards and when, and how it stops."""

from collections.abc import Iterator
from typing import Any

from host.balloon.free_page_hinting import FreePageHinting
from host.balloon.virtio_balloon import Outcome
from host.virtqueue.virtqueue import Chain
from protocol.virtio_balloon import BalloonQueue
from scripts.check.broken.fault import replaced
from scripts.check.ownership.faults.fault import fault
from scripts.check.ownership.pages import Pages
from scripts.check.ownership.world.actor import Point, Program
from scripts.check.ownership.world.guest_side import TOTAL_PAGES
from scripts.check.ownership.world.shared_queue import Service, SharedQueue
from scripts.check.ownership.world.world import World

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


@fault("base-before-chain", *_LATE, "double-acknowledgement", "ring-broken")
def _(world: World) -> None:
    """A split ring is stopped at a base before the chain in hand, which is finished and then taken again."""
    device = world.device
    in_hand: set[SharedQueue] = set()
    taken_again: set[SharedQueue] = set()

    def make_serve(original: Any) -> Any:
        def serve_chain(queue: SharedQueue, *rest: Any) -> Program:
            in_hand.add(queue)
            yield from original(queue, *rest)
            in_hand.discard(queue)

        return serve_chain

    def make_stop(original: Any) -> Any:
        def request_stop() -> None:
            taken_again.clear()
            taken_again.update(in_hand if world.options.ring == "split" else ())
            original()

        return request_stop

    def resume() -> None:
        for queue in device.queues.values():
            base = queue.service.ring.base
            queue.start((base - 1) & 0xFFFF if queue in taken_again else base)

    replaced(device, "serve_chain", make_serve)
    replaced(device, "request_stop", make_stop)
    replaced(device, "resume", lambda original: resume)


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
