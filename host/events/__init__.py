"""Counters of a virtual machine, events about its chains, and the limit of events."""
