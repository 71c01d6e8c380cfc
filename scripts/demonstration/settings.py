"""The options of the demonstration, and the scenarios that it plays with them. Pure but for the scenario files."""

from dataclasses import dataclass, replace
from typing import Final

from protocol.units import GIB, MIB
from scripts.scenario.scenario import Scenario, VmKind, VmSpec
from scripts.scenario.scenario_file import find_scenario, load_scenario

WITH: Final = "taking-turns"
WITHOUT: Final = "taking-turns-without-reporting"
"""The shipped scenarios of the two rounds. Their sizes are replaced where ``--memory`` is given."""

FILL_SECONDS: Final = 3.0
HOLD_SECONDS: Final = 1.0
"""Seconds in which a machine of 1 GiB fills its memory, slowly enough to be watched, and seconds that it uses it."""

UNREPORTED_SECONDS: Final = 2.0
"""Seconds that the round without reporting waits, although memory does not return."""

EMULATED_BOOT_SECONDS: Final = 1.0
REAL_BOOT_SECONDS: Final = 4.0
REAL_RETURN_SECONDS: Final = 6.0
"""Seconds that starts and the return of memory usually take, for the time that is left."""

MOST_SECONDS: Final = 300.0
"""The longest that a round may take. It ends long before, when the second machine has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of the demonstration. ``memory_bytes`` is the memory of each machine."""

    memory_bytes: int
    real: bool
    budget: str

    @property
    def wanted_bytes(self) -> int:
        """What each machine uses at its peak: three quarters of its memory, in whole MiB."""
        return self.memory_bytes * 3 // 4 // MIB * MIB

    @property
    def fill_rate(self) -> int:
        """Bytes a second at which an emulated machine fills: a small one takes less time, a large one no more."""
        return max(round(GIB * 3 / 4 / FILL_SECONDS), round(self.wanted_bytes / FILL_SECONDS))

    @property
    def budget_bytes(self) -> int:
        """The host's memory for both: enough for one machine at its peak and the processes, not for two."""
        return self.memory_bytes * 9 // 8 + 64 * MIB

    def expected_seconds(self, *, reporting: bool) -> float:
        """About how long a round takes: two machines start and fill, one waits to be idle. In the round without
        reporting the second one gets about half."""
        fill = self.wanted_bytes / self.fill_rate
        boot = REAL_BOOT_SECONDS if self.real else EMULATED_BOOT_SECONDS
        first = boot + (fill / 2 if self.real else fill) + HOLD_SECONDS
        if not reporting:
            return first + UNREPORTED_SECONDS + EMULATED_BOOT_SECONDS + fill / 2 + HOLD_SECONDS
        return first + (REAL_RETURN_SECONDS if self.real else 0.5) + EMULATED_BOOT_SECONDS + fill + 2 * HOLD_SECONDS

    def scenario(self, *, reporting: bool) -> Scenario:
        """Return the shipped scenario of a round, of this size, and with a real kernel as its first machine if asked.

        The first machine starts at once, the second one when the round says so.
        """
        shipped = load_scenario(find_scenario(WITH if reporting else WITHOUT))
        first, second = (self._sized(spec) for spec in shipped.vms)
        if self.real:
            first = replace(first, kind=VmKind.LINUX, workloads=(), command=self._command())
        return replace(shipped, budget_bytes=self.budget_bytes, duration=MOST_SECONDS, vms=(first, second))

    def _sized(self, spec: VmSpec) -> VmSpec:
        workload = f"memhog:size={self.wanted_bytes},hold={HOLD_SECONDS},rate={self.fill_rate}"
        return replace(spec, memory_bytes=self.memory_bytes, workloads=(workload,))

    def _command(self) -> str:
        # The guest's /tmp is a tmpfs, in its memory.
        return (
            "set -e; echo phase fill;"
            f" dd if=/dev/zero of=/tmp/fill bs=1M count={self.wanted_bytes // MIB} status=none;"
            f" echo phase hold; sleep {HOLD_SECONDS}; echo phase free; rm /tmp/fill; echo phase rest; sleep 3600"
        )
