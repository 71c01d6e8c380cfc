"""Hostile sessions beside a good machine: what a peer may do to itself, and must not do to others."""
