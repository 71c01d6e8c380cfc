"""Limits of unix sockets, by which vhost-user passes descriptors."""

from typing import Final

FDS_MAX: Final = 253
"""The kernel's own limit for one message (SCM_MAX_FD)."""
