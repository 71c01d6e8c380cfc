"""Which chains a queue has in hand, written down where the next back-end reads it (INFLIGHT_SHMFD)."""
