"""The two fences that a ring needs between processors: a full one, and one for loads or stores alone."""

import platform
import threading


def full_fence() -> None:
    """Order every earlier store before every later load, as seen by a process on another processor.

    This is the store-then-load order that event suppression needs, and that no processor guarantees by itself: publish
    an index, *then* read whether the other side waits for a notification. Taking and releasing a lock is a locked
    read-modify-write on x86-64, a full barrier at once. On AArch64 acquire and release alone let the store sink below
    the load; a release followed by a second acquire of the same lock does not, hence the pair is done twice.
    """
    lock = threading.Lock()  # of this call alone: no virtual machine waits for another's
    with lock:
        pass
    with lock:
        pass


_ACCESSES_KEEP_ORDER = platform.machine() in ("x86_64", "AMD64", "i686")


def order_accesses() -> None:
    """Order loads after earlier loads and stores after earlier stores, as seen by another processor.

    Needed between an index and the entries that it publishes, on both sides. x86 keeps these orders by itself, so there
    it costs nothing; elsewhere it is :func:`full_fence`.
    """
    if not _ACCESSES_KEEP_ORDER:
        full_fence()
