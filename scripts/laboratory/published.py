"""Published figures and their sources, with which the experiments are compared.

Duyck's tables are in the cover letters of "mm / virtio: Provide support for unused page reporting", v12 (22 October
2019), and "mm / virtio: Provide support for free page reporting", v17 (11 February 2020): will-it-scale, iterations a
second, page_fault1 modified to use transparent huge pages, with 1 and with 16 processes. HyperAlloc's are in the data
of "HyperAlloc: Efficient VM Memory De/Inflation via Hypervisor-Shared Page-Frame Allocators" (EuroSys 2025): a build of
clang 16 in a guest of 16 GiB with 12 processors, Linux 6.1 with delay and capacity made parameters.
"""

from dataclasses import dataclass
from typing import Final

BOUNDARY_OVERHEAD: Final = (18, 20)
"""Per cent of page_fault1 throughput that v12 loses on top without its boundary, on a guest of 32 GiB: "up to", from
the text of 3/6 and from the cover letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterations:
    """Iterations a second: pages of 4 KiB faulted by all processes together."""

    baseline: float
    reporting: float

    @property
    def change_percent(self) -> float:
        """The change by reporting, in per cent of the baseline."""
        return 100 * (self.reporting / self.baseline - 1)


WILL_IT_SCALE: Final = {
    "v12": {
        ("page_fault1", 1): Iterations(baseline=1256106.33, reporting=1267916.33),
        ("page_fault1", 16): Iterations(baseline=8864441.67, reporting=8287050.33),
        ("page_fault2", 1): Iterations(baseline=482202.67, reporting=472075.67),
        ("page_fault2", 16): Iterations(baseline=3734692.00, reporting=3774500.33),
    },
    "v17": {
        ("page_fault1", 1): Iterations(baseline=1012402.50, reporting=1010227.50),
        ("page_fault1", 16): Iterations(baseline=8827457.25, reporting=8756219.00),
        ("page_fault2", 1): Iterations(baseline=361855.25, reporting=359749.25),
        ("page_fault2", 16): Iterations(baseline=3282347.00, reporting=3226608.75),
    },
}
"""By version of the series, test and processes. v12 is the ``boundary``, v17 the ``rotation``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One row of HyperAlloc's table."""

    build_minutes: float
    system_minutes: float
    footprint_gib_minutes: float


HYPERALLOC_OFF: Final = Build(build_minutes=41.18, system_minutes=6.08, footprint_gib_minutes=658.6)
HYPERALLOC: Final = {
    (9, 2.0, 32): Build(build_minutes=41.23, system_minutes=6.78, footprint_gib_minutes=434.5),
    (9, 2.0, 512): Build(build_minutes=41.17, system_minutes=6.02, footprint_gib_minutes=431.3),
    (9, 0.1, 32): Build(build_minutes=41.23, system_minutes=6.48, footprint_gib_minutes=438.3),
    (9, 0.1, 512): Build(build_minutes=41.13, system_minutes=6.26, footprint_gib_minutes=435.4),
    (0, 2.0, 32): Build(build_minutes=48.63, system_minutes=57.7, footprint_gib_minutes=390.1),
    (0, 2.0, 512): Build(build_minutes=48.84, system_minutes=56.9, footprint_gib_minutes=379.0),
    (0, 0.1, 32): Build(build_minutes=61.11, system_minutes=128.4, footprint_gib_minutes=449.3),
    (0, 0.1, 512): Build(build_minutes=61.13, system_minutes=118.5, footprint_gib_minutes=441.9),
}
"""By reporting order, delay in seconds and capacity. The first is Linux as it is."""
