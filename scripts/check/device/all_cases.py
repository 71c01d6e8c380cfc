"""The whole suite of a balloon device: importing this module adds every case."""

from scripts.check.device.cases import inflating, reporting
from scripts.check.device.trial import SUITE

MODULES = (reporting, inflating)
"""The modules of cases, each of which has added its own to the suite."""

DEVICE_CASES = SUITE
