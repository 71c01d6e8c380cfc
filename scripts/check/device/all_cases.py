"""The whole suite of a balloon device: importing this module adds every case."""

from scripts.check.device.cases import (
    configuration,
    hinting,
    inflating,
    notifications,
    poisoning,
    reporting,
    statistics_queue,
)
from scripts.check.device.trial import SUITE

MODULES = (reporting, inflating, statistics_queue, hinting, poisoning, configuration, notifications)
"""The modules of cases, each of which has added its own to the suite."""

DEVICE_CASES = SUITE
