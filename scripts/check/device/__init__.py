"""Judges a balloon device: a well-behaved and a hostile driver, and a look at the memory after each answer."""
