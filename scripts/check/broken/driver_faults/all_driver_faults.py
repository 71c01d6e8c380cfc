"""All faults of a driver: importing this module adds every one."""

from scripts.check.broken.driver_fault import DRIVER_FAULTS
from scripts.check.broken.driver_faults import balloon_driver_faults, session_driver_faults

MODULES = (balloon_driver_faults, session_driver_faults)
"""The modules of faults, each of which has added its own."""

ALL_DRIVER_FAULTS = DRIVER_FAULTS
