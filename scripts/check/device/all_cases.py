"""The whole suite of a balloon device: importing this module adds every case."""

from scripts.check.device.cases import (
    chains,
    configuration,
    hinting,
    inflating,
    life_cycle,
    notifications,
    packed_chains,
    poisoning,
    ranges,
    reporting,
    sessions,
    split_chains,
    statistics_queue,
)
from scripts.check.device.trial import SUITE

MODULES = (
    reporting,
    inflating,
    statistics_queue,
    hinting,
    poisoning,
    configuration,
    notifications,
    ranges,
    chains,
    split_chains,
    packed_chains,
    life_cycle,
    sessions,
)
"""The modules of cases, each of which has added its own to the suite."""

DEVICE_CASES = SUITE
