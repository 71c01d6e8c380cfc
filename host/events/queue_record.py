"""What is noted of one queue's chains: counters, events, and the chains that the balloon's controls have to see.

What the event loop does about a chain, every virtual machine waits for. So the worker does all that grows with the
number of chains, and the loop takes in the result at once.
"""

from collections.abc import Callable
from functools import partial

from host.events.metrics import VmMetrics
from host.events.queue_events import BuiltEvents, QueueEvents
from host.ring.turn import ServedChain
from protocol.virtio_balloon import BalloonQueue


class QueueRecord:
    """The record of one queue. It is the worker's that has the queue's ring, else the event loop's.

    ``metrics`` are those of the virtual machine, and ``on_chain`` is called with its chains, both on the event loop. Of
    the reports since the last time ``on_chain`` gets the last one only: the controls ask for nothing but its time.
    """

    __slots__ = ("_events", "_metrics", "_noted", "_on_chain", "_vm_metrics")

    def __init__(self, events: QueueEvents, metrics: VmMetrics, on_chain: Callable[[ServedChain], None]) -> None:
        self._events = events
        self._vm_metrics = metrics
        self._on_chain = on_chain
        self._metrics = VmMetrics()
        self._noted: list[ServedChain] = []

    def chain_served(self, chain: ServedChain) -> None:
        """Take note of a chain that was served."""
        self._metrics.count(chain)
        if chain.queue is BalloonQueue.REPORTING:
            self._noted[:] = (chain,)
        else:
            self._noted.append(chain)
        self._events.chain_served(chain)

    def pass_on(self) -> Callable[[], None]:
        """Begin anew, and return what has the event loop take in the chains so far."""
        take_in = partial(self._take_in, self._events.pass_on(), self._metrics, self._noted)
        self._metrics, self._noted = VmMetrics(), []
        return take_in

    def _take_in(self, events: BuiltEvents, metrics: VmMetrics, noted: list[ServedChain]) -> None:
        self._events.take(events)
        self._vm_metrics.add(metrics)
        for chain in noted:
            self._on_chain(chain)

    def take_rest(self) -> None:
        """On the event loop, which has the record: take in the chains that were not passed on."""
        if self._noted:
            self.pass_on()()
