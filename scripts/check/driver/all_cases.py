"""All cases of a driver: importing this module adds every one."""

from typing import Final

from scripts.check.driver import balloon_cases, buffer_cases, message_cases, report_cases, status_cases
from scripts.check.driver.observation import Observed
from scripts.check.driver.suite import SUITE
from scripts.check.suite import Suite

MODULES: Final = (report_cases, balloon_cases, buffer_cases, status_cases, message_cases)

DRIVER_CASES: Final[Suite[Observed]] = SUITE
