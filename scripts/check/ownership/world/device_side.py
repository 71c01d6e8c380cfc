"""The host: the balloon device, a worker for each queue, and the operator who asks for memory.

``VirtioBalloon``, the discard plan, the device's half of each ring and the states of a queue's service are the real
ones. A worker's program takes the steps of ``host.ring.ring_service.RingService`` in its order, and stops between any
two of them; in the place of a hole in a file the ledger is told of a discard.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Final

from host.balloon.virtio_balloon import Outcome, VirtioBalloon
from host.memory.discard_plan import DeviceMemory, joined
from host.ring.service_state import ServiceEvent, ServiceState
from host.virtqueue.virtqueue import Chain
from protocol.balloon_config import BalloonConfig
from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, RegionTable, UserAddress
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from scripts.check.ownership.page_owners import PageOwners
from scripts.check.ownership.page_state import PageEvent
from scripts.check.ownership.pages import Pages, amount
from scripts.check.ownership.world.actor import Point, Program
from scripts.check.ownership.world.shared_queue import BASE, SHARED_BYTES, Service, SharedMemory, SharedQueue
from scripts.check.ownership.world.world_options import WorldOptions

_TARGETS: Final = (0, 0, 1, 2, 5, 300, 4096)


def negotiated(options: WorldOptions) -> int:
    """Return the features of a world."""
    features = feature_mask(
        FeatureBit.VERSION_1, FeatureBit.RING_EVENT_IDX, BalloonFeature.FREE_PAGE_HINT, BalloonFeature.PAGE_REPORTING
    )
    if options.must_tell_host == "on":
        features |= feature_mask(BalloonFeature.MUST_TELL_HOST)
    if options.deflate_on_oom == "on":
        features |= feature_mask(BalloonFeature.DEFLATE_ON_OOM)
    return features


class DeviceSide:
    """The device of a guest of ``pages`` pages, with the rings of ``queues``."""

    def __init__(
        self,
        options: WorldOptions,
        owners: PageOwners,
        pages: int,
        memory: SharedMemory,
        queues: Mapping[BalloonQueue, SharedQueue],
    ) -> None:
        self._owners = owners
        self._shared = memory
        self._features = negotiated(options)
        self.queues = queues
        self.balloon = VirtioBalloon(config=BalloonConfig(), features=self._features)
        table = RegionTable(
            MemoryRegion(
                guest_address=GuestAddress(start),
                size=size,
                user_address=UserAddress(start),
                mmap_offset=0,
            )
            for start, size in ((0, pages * PAGE_SIZE), (BASE, SHARED_BYTES))
        )
        rings = [part for queue in queues.values() for part in queue.ring_parts]
        self.memory = DeviceMemory(table, protected=rings)
        self._round = False

    # --- A worker ---

    def run_worker(self, queue: SharedQueue) -> Program:
        """Serve the chains of one queue, of one ring after the other."""
        while True:
            yield (Point("take", lambda: queue.service.has_worker),)
            service = queue.service
            chain = service.ring.pop() if service.state is not ServiceState.STOPPING else None
            if chain is None:
                if service.state is ServiceState.STOPPING or not service.ring.enable_notification():
                    service.move(ServiceEvent.EMPTY)
                continue
            outcome = self.judge(queue, chain)
            yield from self.serve_chain(queue, service, chain, outcome)
            if service.state is ServiceState.STOPPING or not service.ring.enable_notification():
                service.move(ServiceEvent.EMPTY)

    def judge(self, queue: SharedQueue, chain: Chain) -> Outcome:
        """Return what a chain asks for."""
        return self.balloon.serve(queue.queue, chain, self.memory, self._shared.read)

    def serve_chain(self, queue: SharedQueue, service: Service, chain: Chain, outcome: Outcome) -> Program:
        """Discard what the chain asks for, then give it back. A ring that is to stop may have it back before."""
        for pages in self.discards(outcome):
            step = yield self.discard_points(service)
            if step.action == "put-back":
                service.ring.unpop(chain)
                return
            self.discard(pages)
        yield (Point("acknowledge"),)
        self.acknowledge(queue, service, chain, outcome)

    def discards(self, outcome: Outcome) -> Iterator[Pages]:
        """Return the ranges that are discarded, one system call each."""
        for _, offset, length in joined(outcome.plan.discards):
            yield Pages(offset // PAGE_SIZE, length // PAGE_SIZE)

    def discard_points(self, service: Service) -> tuple[Point, ...]:
        """Return what a worker may do that has a range to discard: where the ring is to stop, its patience may end."""
        if service.state is ServiceState.STOPPING:
            return Point("discard"), Point("put-back")
        return (Point("discard"),)

    def discard(self, pages: Pages) -> None:
        """Discard pages of the guest."""
        self._owners.note(PageEvent.DISCARD, pages)

    def acknowledge(self, queue: SharedQueue, service: Service, chain: Chain, outcome: Outcome) -> None:
        """Give a chain back."""
        length = self.balloon.used_length(queue.queue, chain, outcome, self._shared.write)
        queue.give_back(service, chain.head, length)

    # --- Rings come and go ---

    def request_stop(self) -> None:
        """Have every ring stop; each is stopped when its worker lets go."""
        for queue in self.queues.values():
            queue.service.move(ServiceEvent.STOP)

    def are_stopped(self) -> bool:
        """Return whether no ring is served any more."""
        return all(queue.service.state is ServiceState.STOPPED for queue in self.queues.values())

    def resume(self) -> None:
        """Serve every ring again from where it was stopped."""
        for queue in self.queues.values():
            queue.start(queue.service.ring.base)

    def reset(self) -> None:
        """Forget the driver. Its rings are stopped."""
        self._round = False
        self.balloon.reset()
        self._owners.reset()

    def attach(self) -> None:
        """Begin with a driver, over empty rings."""
        self.balloon.features = self._features
        self.balloon.hinting.forget_driver()
        for queue in self.queues.values():
            queue.renew()

    # --- The operator ---

    def run_operator(self, set_target: Callable[[int], None]) -> Program:
        """Ask for a balloon of another size, and for rounds of hints, as ``host.control.reclaim`` does."""

        def any_target(random: Random) -> tuple[Pages, ...]:
            return (amount(random.choice(_TARGETS)),)

        hinting = self.balloon.hinting
        points = (
            Point("balloon", propose=any_target, fits=lambda pages: len(pages) == 1),
            Point("start-hints", lambda: not self._round),
            Point("stop-hints", lambda: hinting.is_open),
            Point("end-hints", self.may_end_hints),
        )
        while True:
            step = yield points
            if step.action == "balloon":
                self.balloon.config = replace(self.balloon.config, num_pages=step.pages[0].length)
                set_target(step.pages[0].length)
                continue
            if step.action == "start-hints":
                self._round = True
                hinting.start()
            elif step.action == "stop-hints":
                hinting.stop()
            else:
                self._round = False
                hinting.done()
                self._owners.done(hinting.last_id)
            self.balloon.config = replace(self.balloon.config, free_page_hint_cmd_id=hinting.command_id)

    @property
    def is_round_closed(self) -> bool:
        """Whether a round of hints is closed after which DONE is still to be shown."""
        return self._round and not self.balloon.hinting.is_open

    def may_end_hints(self) -> bool:
        """Return whether DONE may be shown: the round is closed, and no worker can be discarding a block of it."""
        return self.is_round_closed and not self.queues[BalloonQueue.FREE_PAGE].service.has_worker
