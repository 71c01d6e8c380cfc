"""The ledger of an emulated guest in virtual time, as a run records it."""

from guest.simulation import Simulation
from protocol.memory import PAGE_SIZE
from scripts.scenario.run_record import LedgerEntry


def ledger_entry(simulation: Simulation, backed_free_pages: int | None) -> LedgerEntry:
    """Return what holds each free byte of the guest that the host still backs, and its page cache beside it.

    ``backed_free_pages`` is how many pages these are, None where that is not known.
    """
    held = simulation.ledger(backed_free_pages).held_bytes
    return LedgerEntry(
        causes={cause.value: size for cause, size in held.items()},
        page_cache_bytes=simulation.machine.cached_pages * PAGE_SIZE,
    )
