"""Fuzzing of what takes bytes from a peer: targets, a small corpus, and a driver that mutates it."""
