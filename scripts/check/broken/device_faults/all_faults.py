"""All faults: importing this module adds every one."""

from scripts.check.broken.device_faults import (
    balloon_faults,
    discard_faults,
    draft_faults,
    late_faults,
    order_faults,
    range_faults,
    ring_faults,
    session_faults,
)
from scripts.check.broken.fault import DEVICE_FAULTS

MODULES = (
    ring_faults,
    order_faults,
    discard_faults,
    late_faults,
    range_faults,
    balloon_faults,
    session_faults,
    draft_faults,
)
"""The modules of faults, each of which has added its own."""

ALL_FAULTS = DEVICE_FAULTS
