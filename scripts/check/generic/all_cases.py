"""All generic cases: each module of cases adds its own to the suite."""

from typing import Final

from scripts.check.generic import (
    descriptor_cases,
    framing_cases,
    memory_cases,
    negotiation_cases,
    ring_life_cases,
    ring_setup_cases,
    shared_area_cases,
    slot_cases,
)
from scripts.check.generic.suite import SUITE, GenericSuite

MODULES: Final = (
    framing_cases,
    negotiation_cases,
    memory_cases,
    slot_cases,
    ring_setup_cases,
    ring_life_cases,
    descriptor_cases,
    shared_area_cases,
)

GENERIC_CASES: Final[GenericSuite] = SUITE
