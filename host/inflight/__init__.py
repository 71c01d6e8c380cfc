"""The record of the chains that a queue has in hand, for the next back-end (INFLIGHT_SHMFD)."""
