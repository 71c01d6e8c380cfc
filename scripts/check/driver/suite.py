"""The suite of a driver: each case looks at what was observed."""

from typing import Final

from scripts.check.driver.observation import Observed
from scripts.check.suite import Suite

SUITE: Final = Suite[Observed]("driver")
