"""Faults in which ranges of a chain are discarded: of many, of a large one, and of memory in several regions."""

from collections.abc import Callable
from typing import Any

from host.memory.discard_plan import DeviceMemory, DiscardPlan
from protocol.memory import FileRange, RegionTable
from scripts.check.broken.fault import fault, replaced


def _planned(change: Callable[[list[FileRange], RegionTable], list[FileRange]]) -> None:
    # Have `change(discards, table)` alter the list of what a chain discards.
    def make(original: Any) -> Any:
        def plan(self: Any, *rest: Any) -> DiscardPlan:
            planned: DiscardPlan = original(self, *rest)
            planned.discards = change(planned.discards, self.table)
            return planned

        return plan

    replaced(DeviceMemory, "plan", make)


@fault("ranges-beyond-32-lost", caught_by=("report-of-many-ranges/split", "report-of-many-ranges/packed"))
def _() -> None:
    """Of a chain the first 32 ranges are discarded, which is what Linux reports at most."""
    _planned(lambda discards, table: discards[:32])


@fault("four-mib-at-most", caught_by=("report-of-a-large-range/split", "report-of-a-large-range/packed"))
def _() -> None:
    """Of a range the first 4 MiB are discarded, the largest block of x86."""
    _planned(lambda discards, table: [one._replace(length=min(one.length, 4 << 20)) for one in discards])


@fault("region-offset-ignored", caught_by=("range-in-each-region/split", "range-in-each-region/packed"))
def _() -> None:
    """What is discarded of a region is taken from the beginning of its file, whatever its offset there is."""
    _planned(
        lambda discards, table: [
            one._replace(offset=one.offset - table.regions[one.region].mmap_offset) for one in discards
        ]
    )


@fault("first-region-only", caught_by=("range-in-each-region/split",))
def _() -> None:
    """Ranges of all regions but the first are acknowledged and stay."""
    _planned(lambda discards, table: [one for one in discards if one.region == 0])
