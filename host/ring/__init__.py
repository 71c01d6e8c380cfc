"""A running queue: kick, chains, discards, used entries, interrupt."""
