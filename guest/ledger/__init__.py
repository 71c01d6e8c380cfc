"""The ledger: every byte that the guest has free and the host still backs, booked to one cause."""
