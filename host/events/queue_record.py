"""What is noted of one queue's chains: counters, events, and the chains that the balloon's controls have to see.

The worker that serves the queue does all that grows with the number of chains. The event loop takes in the result at
once, in a time that hardly depends on how many there were: while it is at work, the worker and the guest wait.
"""

from collections.abc import Callable
from functools import partial

from host.events.metrics import VmMetrics
from host.events.queue_events import BuiltEvents, QueueEvents
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue


class QueueRecord:
    """The record of one queue. It is the worker's that has the queue's ring.

    ``metrics`` are those of the virtual machine, and ``on_chain`` is called with its chains, both on the event loop. Of
    the reports since the last time ``on_chain`` gets the last one only: the controls ask for nothing but its time.
    """

    __slots__ = ("_chains", "_events", "_metrics", "_on_chain", "_vm_metrics")

    def __init__(self, events: QueueEvents, metrics: VmMetrics, on_chain: Callable[[ServedChain], None]) -> None:
        self._events = events
        self._vm_metrics = metrics
        self._on_chain = on_chain
        self._metrics = VmMetrics()
        self._chains: list[ServedChain] = []

    def chain_served(self, chain: ServedChain) -> None:
        """Take note of a chain that was served."""
        self._metrics.count(chain)
        if chain.queue is BalloonQueue.REPORTING:
            self._chains[:] = (chain,)
        else:
            self._chains.append(chain)
        self._events.chain_served(chain)

    def pass_on(self) -> Callable[[], None]:
        """Begin anew, and return what has the event loop take in the chains so far."""
        take_in = partial(self._take_in, self._events.pass_on(), self._metrics, self._chains)
        self._metrics, self._chains = VmMetrics(), []
        return take_in

    def _take_in(self, events: BuiltEvents, metrics: VmMetrics, chains: list[ServedChain]) -> None:
        self._events.take(events)
        self._vm_metrics.add(metrics)
        for chain in chains:
            self._on_chain(chain)
