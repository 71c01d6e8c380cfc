"""A ring that is about to be served: mapped, and the device's side of it opened."""

from collections.abc import Callable
from typing import NamedTuple

from host.balloon.virtio_balloon import Outcome
from host.memory.guest_memory import GuestMemory, MappedRing
from host.vhost_user.actions import StartRing
from host.virtqueue.virtqueue import Chain, DeviceVirtqueue, ReadGuest
from protocol.ring_formats import Ring

OpenQueue = Callable[[StartRing, Ring, ReadGuest], DeviceVirtqueue]
"""Opens the device's side of a mapped ring as an action says."""


Observe = Callable[[Chain, Outcome], None]
"""Is told, on the worker, of a chain whose outcome was carried out, before it is given back or held."""


class OpenedRing(NamedTuple):
    """A mapping and the virtqueue in it, and what observes its chains."""

    mapped: MappedRing
    virtqueue: DeviceVirtqueue
    observe: Observe | None = None


def open_ring(action: StartRing, memory: GuestMemory, open_queue: OpenQueue) -> OpenedRing:
    """Map the ring of ``action`` in ``memory`` and open it. It is given back with :meth:`GuestMemory.unmap_ring`.

    Raises:
        VhostUserError: the ring cannot be mapped, or its base does not lie in it. Nothing is held then.
    """
    mapped = memory.map_ring(action.index, action.place)
    try:
        return OpenedRing(mapped, open_queue(action, mapped.ring, memory.read))
    except BaseException:
        memory.unmap_ring(action.index, mapped)
        raise
