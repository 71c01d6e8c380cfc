"""Workloads of the emulated machine, one file for each kind."""
