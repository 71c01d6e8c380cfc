"""One running queue: from a kick to the used entry, discards included.

The event loop only notices the kick that begins a turn. Everything between the kick and the guest's interrupt happens
on a worker thread, in one go: take a chain, discard, give it back, call. So a large discard stalls no other queue, and
a small one does not wait for the loop. At most one worker serves a queue at a time, which keeps the order of its chains
and makes the ring's state single-threaded; the loop touches it only while no worker does.

Drivers report in bursts, one chain outstanding: the next kick follows an interrupt within microseconds. So a worker
that has emptied the ring waits for that kick itself for a moment, which saves the way through the loop. A worker
handles a bounded number of chains and then queues up again after the other queues' workers. It begins anew only when
the loop has taken in what it served: so a flood of chains waits for the loop, and not the other way round. A worker
that is the only one at work in the daemon goes on at once, as long as the loop keeps up and wants nothing of it.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Final

from host.balloon.balloon_statistics import BalloonStatistics
from host.balloon.virtio_balloon import Outcome, VirtioBalloon
from host.memory.discard import punch_hole
from host.memory.discard_plan import DiscardPlan, Refusal, joined
from host.memory.guest_memory import GuestMemory
from host.ring.hand_over import HandOver
from host.ring.kick_watch import KickWatch
from host.ring.opened_ring import OpenedRing
from host.ring.queue_files import KeptBuffer, QueueFiles
from host.ring.ring_poller import RingPoller
from host.ring.service_state import HAS_WORKER, IS_OVER, TRANSITIONS, ServiceEvent, ServiceState
from host.ring.turn import ChainRecord, ServedChain, Turn
from host.vhost_user.actions import StartRing
from host.vhost_user.device_setup import KickMethod
from host.virtqueue.virtqueue import Chain, LongChain, OnWrite
from protocol.errors import VhostUserError, VirtqueueError
from protocol.virtio_balloon import BalloonQueue

log = logging.getLogger(__name__)

CHAINS_PER_TURN: Final = 16
"""Chains that a worker serves before other queues get their turn."""

LARGE_CHAIN: Final = 4096
"""Buffers of a chain from which on one process has only one in hand at a time. A driver's chain has at most as many as
its ring; 32,768 of them take megabytes and a good part of a second, and a process may have hundreds of rings."""

LINGER_MS: Final = 1
"""Milliseconds that a worker waits for the next kick before it leaves the watch to the event loop again."""

RELIEF_INTERVAL: Final = 0.05
"""Seconds between attempts to free the worker of a ring that is being stopped, when the front-end blocks it."""

SPURIOUS_KICK_BACKOFF: Final = 0.01
"""Seconds for which a kick descriptor is left unwatched after kicks without a chain for a whole turn. Drivers do not
send these; a descriptor that is always readable (a semaphore, a random number generator) would cost a processor."""

STOP_PATIENCE: Final = 1.0
"""Seconds for which the discard of the chain in hand may go on while its ring is to stop. A driver's chain takes far
less. A hostile one that takes minutes is put back unacknowledged, and taken again when the ring is served next."""

_STOPPING: Final = ServiceState.STOPPING  # looked at for each range: an enumeration's members are slow to look up


class RingService:
    """Serves one queue from :meth:`start` until :meth:`stop`.

    ``on_turn`` is called on the event loop after each worker's turn, when what was noted in ``record`` is taken in. For
    ``is_alone`` see :class:`HandOver`. ``large_chains`` is held while a chain of more than :data:`LARGE_CHAIN` buffers
    is in hand. Once ``broken`` the driver has broken a rule, and the ring is not touched again.

    Who owns what. The event loop alone writes ``_state``, ``_patience_ends``, ``_poller``, ``_idle``, ``_stopped`` and
    ``_give_back_wanted``. The worker that has the ring alone uses ``_ring``, ``_held``, ``_held_says``,
    ``_signal_first`` and ``_give_back_done``; the loop touches these only while no worker has the ring. So it is with
    ``_kick`` and ``_hand_over``, which say who does what. The worker reads ``_state`` and ``_idle`` to see whether the
    loop wants the ring. Both sides clear ``_is_stale`` and neither sets it.
    """

    def __init__(
        self,
        action: StartRing,
        opened: OpenedRing,
        files: QueueFiles,
        memory: GuestMemory,
        balloon: VirtioBalloon,
        workers: Executor,
        is_alone: Callable[[], bool],
        on_turn: Callable[[int, Turn], None],
        record: ChainRecord,
        large_chains: threading.Lock,
    ) -> None:
        self.index = action.index
        self.queue = action.queue
        self.began = time.monotonic()
        self.discard_error = 0  # errno of the last discard that failed
        self.kick_method = KickMethod.of(has_descriptor=files.kick is not None, in_band=action.inband)
        self._files = files
        self._memory = memory
        self._balloon = balloon
        self._workers = workers
        self._on_turn = on_turn
        self._hand_over = HandOver(record, is_alone)
        self._large_chains = large_chains
        self._loop = asyncio.get_running_loop()
        # The event loop's.
        self._state = ServiceState.IDLE
        self._patience_ends = math.inf
        self._poller = RingPoller(partial(self._move, ServiceEvent.KICK))
        self._idle: list[asyncio.Future[None]] = []
        self._stopped: asyncio.Task[int] | None = None
        self._give_back_wanted = 0
        # The worker's.
        self._signal_first = action.signal_first
        self._held: Chain | None = None
        self._held_says: BalloonStatistics | None = None
        self._give_back_done = 0
        # In turns.
        self._kick = KickWatch(action.index, files.kick, self._on_kick)
        self._mapped, self._ring, self._observe = opened
        # A ring that goes on where it stopped is as we left it. If it has changed, its driver has gone and the memory
        # has another use by now (User Mode Linux unloads a driver without a message): it is left alone until a kick.
        self._is_stale = action.resumes and not self._ring.is_as_left(files.token)
        self._is_new_driver = self._is_stale or not action.resumes

    def start(self) -> None:
        """Watch for kicks, and look at the ring once.

        Raises:
            VhostUserError: the kick descriptor cannot be waited for. The ring is unmapped then.
        """
        try:
            self._kick.start()
        except VhostUserError:
            self._memory.unmap_ring(self.index, self._mapped)
            raise
        if self._is_new_driver and self.queue is BalloonQueue.FREE_PAGE:
            self._balloon.hinting.forget_driver()
        if self._is_stale:
            self._files.kept = None
            if self._kick.drop():
                self._move(ServiceEvent.KICK)  # for the worker to read what is there
            return
        self._move(ServiceEvent.KICK)
        if self.kick_method is KickMethod.POLLING:
            self._poller.start()

    @property
    def broken(self) -> bool:
        """Whether the driver has broken a rule of the ring."""
        return self._state is ServiceState.BROKEN

    # -- on the event loop ------------------------------------------------------------------------------------------

    def set_on_write(self, on_write: OnWrite | None) -> None:
        """Have every write into the ring told to ``on_write`` that is made after this returns."""
        self._ring.on_write = on_write

    def _on_kick(self, taken: bool) -> None:
        if taken:
            self._is_stale = False
        self._move(ServiceEvent.KICK)

    def kick(self) -> None:
        """Look at the ring: the driver has kicked it by a message."""
        if self._state not in IS_OVER:
            self._is_stale = False
        self._move(ServiceEvent.KICK)

    def _move(self, event: ServiceEvent) -> None:
        self._state = TRANSITIONS[self._state, event]
        if self._state is ServiceState.WORKING:  # to which no transition leads while a worker has the ring
            self._kick.stop()
            self._workers.submit(self._serve)

    def _turn_done(self, turn: Turn) -> None:
        try:
            self._hand_over.take_rest()  # before a worker has the ring again: a flood of chains waits for the loop
        finally:
            self._let_go(turn)

    def _let_go(self, turn: Turn) -> None:
        self._move(turn.end)
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)
        self._idle.clear()
        if self._state is ServiceState.IDLE:
            self._kick.resume()
        elif self._state is ServiceState.RESTING:
            self._kick.resume_after(SPURIOUS_KICK_BACKOFF, self._rested)
        if self._state in IS_OVER:
            self._poller.stop()
        else:
            self._poller.found(turn.has_served)
        self._on_turn(self.index, turn)

    def _rested(self) -> None:
        self._move(ServiceEvent.RESTED)
        self._kick.resume()

    def give_back_held(self) -> bool:
        """Give the held chain back, which asks its driver for a new one. Return False if the ring is not to be touched.

        Without a held chain this has no effect: the driver's next one is on its way.
        """
        if self._state in IS_OVER or self._is_stale:
            return False
        self._give_back_wanted += 1
        self._move(ServiceEvent.KICK)
        return True

    async def settled(self) -> None:
        """Return when no chain is in hand that a worker took before this was called.

        Whatever the event loop wrote before the call, the worker sees in every chain that it takes afterwards.
        """
        if self._state in HAS_WORKER:
            idle = self._loop.create_future()
            self._idle.append(idle)
            await idle

    async def stop(self, *, drain: bool = True) -> int:
        """Finish the chain in hand, or put it back if that takes too long (:data:`STOP_PATIENCE`), then touch the
        ring no more. Return the base to go on from. Without ``drain`` the chain is put back once the discard of the
        range in hand has returned.

        May be called again, also when an earlier caller was cancelled while it waited.
        """
        patience = STOP_PATIENCE if drain else 0.0
        self._patience_ends = min(self._patience_ends, time.monotonic() + patience)
        if self._stopped is None:
            self._stopped = self._loop.create_task(self._stop())
        return await asyncio.shield(self._stopped)

    async def _stop(self) -> int:
        self._move(ServiceEvent.STOP)
        self._kick.stop()
        self._poller.stop()
        settled = self._loop.create_task(self.settled())
        while not (await asyncio.wait([settled], timeout=RELIEF_INTERVAL))[0]:
            self._files.relieve()
        if self._held is not None and not self.broken:
            self._ring.unpop(self._held)  # the next service of the ring takes it again
            if self._held_says is not None:
                self._files.kept = KeptBuffer(self._ring.base, self._held_says)
        if not self._is_stale:
            self._files.token = self._ring.token
        self._memory.unmap_ring(self.index, self._mapped)
        return self._ring.base

    # -- on a worker thread -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        turn = Turn()
        try:
            if self._signal_first:
                self._signal_first = False
                self._files.signal_call()
            self._serve_bursts(turn)
        except VirtqueueError as error:
            turn.broken = error
        except MemoryError:
            turn.broken = VirtqueueError("the daemon is out of memory")
        except Exception as error:
            turn.broken = VirtqueueError(f"internal error: {error}")
            log.exception("serving queue %d failed", self.index)
        finally:
            self._end_turn(turn)

    def _end_turn(self, turn: Turn) -> None:
        # The loop has to learn that the worker is done, also after an error: a stop waits for that.
        try:
            if self._mapped.lost:
                turn.broken = VirtqueueError("the memory below the ring was cut short")
            if turn.broken is not None:
                turn.end = ServiceEvent.BREAK
                self._files.signal_err()
        finally:
            self._hand_over.end(partial(self._turn_done, turn))

    def _give_back_if_wanted(self) -> None:
        if (wanted := self._give_back_wanted) != self._give_back_done:
            self._give_back_done = wanted
            self._give_back_held()

    def _give_back_held(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._ring.add_used(held.head, 0)
            if self._ring.needs_notification():
                self._files.signal_call()

    def _serve_bursts(self, turn: Turn) -> None:
        if self._kick.unread and self._kick.take_unread():
            self._is_stale = False
        if self._is_stale or not self._balloon.serves(self.queue):
            return
        # A buffer that was kept over a stop is in the ring, and is found again in this turn.
        if self._files.kept is None and self._state is not _STOPPING:
            self._give_back_if_wanted()
        self._serve_share(turn)
        while turn.end is ServiceEvent.MORE and self._may_go_on():
            turn.chains, turn.end = 0, ServiceEvent.EMPTY
            self._serve_share(turn)

    def _may_go_on(self) -> bool:
        return self._state is ServiceState.WORKING and not self._idle and self._hand_over.lets_worker_go_on

    def _serve_share(self, turn: Turn) -> None:
        self._serve_chains(turn)
        # Kicks count as well as chains, so that kicks without a chain do not keep this thread.
        for _ in range(CHAINS_PER_TURN):
            if turn.end is ServiceEvent.MORE or self._state is _STOPPING or not self._kick.take(LINGER_MS):
                return
            self._serve_chains(turn)
        turn.end = ServiceEvent.MORE if turn.chains else ServiceEvent.SPURIOUS

    def _serve_chains(self, turn: Turn) -> None:
        ring = self._ring
        while self._state is not _STOPPING:
            if turn.chains == CHAINS_PER_TURN:
                turn.end = ServiceEvent.MORE
                return
            begin = time.monotonic()
            base = ring.base
            try:
                chain = ring.pop(LARGE_CHAIN)
            except LongChain:
                if not self._serve_large_chain(turn, base, begin):
                    return
                continue
            if chain is None:
                if not ring.enable_notification():
                    return
                continue
            if self._mapped.lost:
                return  # the chain consists of zeros, or of remains of an old one
            if not self._serve_chain(turn, chain, base, begin):
                return

    def _serve_large_chain(self, turn: Turn, base: int, begin: float) -> bool:
        # One of a process at a time is read whole: the others take neither memory nor the interpreter meanwhile.
        while not self._large_chains.acquire(timeout=RELIEF_INTERVAL):
            if self._state is _STOPPING:
                return False
        try:
            chain = self._ring.pop()  # the driver may have made another of it
            if chain is None:
                return True
            return not self._mapped.lost and self._serve_chain(turn, chain, base, begin)
        finally:
            self._large_chains.release()

    def _serve_chain(self, turn: Turn, chain: Chain, base: int, begin: float) -> bool:
        # False when the ring is to stop, and the chain was put back.
        ring = self._ring
        outcome = self._balloon.serve(self.queue, chain, self._memory.device, self._memory.read)
        judged = time.monotonic()
        try:
            discarded = self._discard(outcome.plan)
        finally:
            if self.queue is BalloonQueue.INFLATE:
                self._balloon.parts.finish()
        discard_seconds = time.monotonic() - judged
        if discarded is None:
            ring.unpop(chain)
            return False
        if self._observe is not None:
            self._observe(chain, outcome)
        if outcome.hold:
            # A driver has one such buffer. If a second one comes, the first goes back: one is held.
            self._give_back_held()
            self._held, self._held_says = chain, outcome.statistics
            if self._was_kept(base, outcome):
                turn.chains += 1  # its content was passed on when it was first taken
                return True
        else:
            ring.add_used(chain.head, self._balloon.used_length(self.queue, chain, outcome, self._memory.write))
            if ring.needs_notification():
                self._files.signal_call()
        end = time.monotonic()
        chain_served = ServedChain(self.queue, outcome, end, end - begin, discarded, discard_seconds)
        self._hand_over.chain_served(turn, chain_served)
        return True

    def _was_kept(self, base: int, outcome: Outcome) -> bool:
        # Statistics do not become newer when a ring stops and goes on. New ones are requested if they were asked for in
        # between.
        kept, self._files.kept = self._files.kept, None
        again = kept is not None and kept == (base, outcome.statistics)
        if again:
            self._give_back_if_wanted()
        return again

    def _discard(self, plan: DiscardPlan) -> int | None:
        # None: the ring is to stop, and this took too long.
        files = self._memory.files
        discarded = 0
        for number, offset, length in joined(plan.discards):
            if self._state is _STOPPING and time.monotonic() > self._patience_ends:
                return None
            if (error := punch_hole(files[number].fd, offset, length)) == 0:
                discarded += length
            else:
                self.discard_error = error
                for place in plan.discards:
                    if place.region == number and offset <= place.offset < offset + length:
                        plan.refuse(Refusal.DISCARD_FAILED, self._memory.table.guest_of(place), place.length)
        return discarded
