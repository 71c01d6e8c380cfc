"""The whole suite of a balloon device: importing this module adds every case."""

from scripts.check.device.cases import (
    chains,
    configuration,
    drafts,
    hinting,
    in_order,
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
    targets,
)
from scripts.check.device.trial import SUITE

MODULES = (
    reporting,
    inflating,
    statistics_queue,
    hinting,
    poisoning,
    configuration,
    targets,
    notifications,
    ranges,
    chains,
    split_chains,
    packed_chains,
    in_order,
    life_cycle,
    sessions,
    drafts,
)
"""The modules of cases, each of which has added its own to the suite."""

DEVICE_CASES = SUITE
