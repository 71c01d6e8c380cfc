"""All fuzz targets. Each is a function of bytes that raises only for a fault in the code under test."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from scripts.check.fuzzing.codec_target import codec
from scripts.check.fuzzing.plan_target import chain, discard_plan
from scripts.check.fuzzing.ring_target import packed_ring, split_ring
from scripts.check.fuzzing.small_targets import config, control, statistics
from scripts.check.fuzzing.table_target import indirect_table

Target: TypeAlias = Callable[[bytes], None]

TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        "chain": chain,
        "codec": codec,
        "config": config,
        "control": control,
        "discard-plan": discard_plan,
        "indirect-table": indirect_table,
        "packed-ring": packed_ring,
        "split-ring": split_ring,
        "statistics": statistics,
    }
)
"""By the names that the command takes: those of :data:`scripts.check.fuzzing.options.NAMES`."""
