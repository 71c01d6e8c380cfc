"""Policies: who of the virtual machines of a host gets how much memory.

A policy is a client of the daemon's control socket, or a part of a simulation. The daemon itself decides nothing.
"""
