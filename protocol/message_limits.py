"""How long a vhost-user message may be, and how many descriptors may come with it."""

from typing import Final

FDS_MAX: Final = 253
"""The kernel's own limit for one message (SCM_MAX_FD)."""

PAYLOAD_MAX: Final = 4096
"""No message of the specification is longer; more is refused before anything is allocated for it."""
