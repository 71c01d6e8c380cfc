"""Scenarios: virtual machines that share a host's memory, played by real processes or in virtual time."""
