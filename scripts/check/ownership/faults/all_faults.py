"""All faults of a world."""

from typing import Final

from scripts.check.ownership.faults import device_faults, driver_faults
from scripts.check.ownership.faults.fault import FAULTS, Fault

MODULES: Final = (device_faults, driver_faults)
ALL_FAULTS: Final[dict[str, Fault]] = FAULTS
"""All of them by their names, those of the device first."""
