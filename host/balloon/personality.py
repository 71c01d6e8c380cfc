"""Personalities: where the balloon devices of other virtual machine monitors differ from ours, and from each other.

A driver that works with one device meets another's habits only in production. ``--personality`` shows it those habits
now: how the queues are numbered, what the used length of a report is, which ranges are kept.

Each value is what was published or read in the source named by ``source`` (QEMU hw/virtio/virtio-balloon.c, Firecracker
@81b38b9, Cloud Hypervisor @ae44c29, crosvm @f1e797a; libkrun as of 2025). What a device does with its host's memory
alone is not copied: Firecracker frees nothing of a memfd, ours does. A personality never loosens the judgement of
:mod:`host.memory.discard_plan`: only whole ranges of the guest's memory, and never a page that holds a ring.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from host.balloon.offered_features import OFFERED, TRANSPORT
from host.memory.discard_plan import Ragged, RangeRules
from protocol.memory import PAGE_SIZE
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import CONFIG_SIZE, DRIVER_FIELDS, BalloonFeature, BalloonQueue, QueueDialect

_ALL_QUEUES: Final = frozenset(BalloonQueue)


class ReportLength(Enum):
    """The used length of a report."""

    ZERO = "zero"
    """0: the device has written no byte."""
    SUM = "sum"
    """The sum of the lengths of the chain's descriptors, modulo 2^32, although no byte was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Personality:
    """The habits of one device.

    - ``features``: the feature bits that it offers unless ``--features`` switches them.
    - ``queue_numbers``: how it numbers its queues; None finds out what the driver does.
    - ``config_size``: bytes of its configuration space. Bytes beyond read as zero, and a write to them is ignored. With
      ``config_by_features`` the space ends before the fields of features that are not offered.
    - ``config_writable``: the bytes of the space that a driver may write.
    - ``report_length``: the used length of a report. That of any other chain is 0.
    - ``takes_readable``: whether pages in device-readable descriptors of a report are discarded too.
    - ``ranges``: what becomes of a reported range that is not whole pages, or not in one region.
    - ``poison_keeps``: the queues whose pages a pattern other than zero keeps from being discarded.
    - ``serves``: the queues that it looks at. It takes no chain from any other.
    - ``outside_max``: the bytes outside of memory that one report may name; more of them end the service of the queue.
      None is no limit.
    - ``breaks_empty``: whether a descriptor of no bytes ends the service of its queue.
    - ``keeps_actual``: whether a driver finds the ``actual`` that the last one wrote.
    """

    name: str
    source: str
    features: int = OFFERED
    queue_numbers: QueueDialect | None = None
    config_size: int = CONFIG_SIZE
    config_by_features: bool = False
    config_writable: frozenset[int] = DRIVER_FIELDS
    report_length: ReportLength = ReportLength.ZERO
    takes_readable: bool = False
    ranges: RangeRules = field(default_factory=RangeRules)
    poison_keeps: frozenset[BalloonQueue] = _ALL_QUEUES
    serves: frozenset[BalloonQueue] = _ALL_QUEUES
    outside_max: int | None = None
    breaks_empty: bool = False
    keeps_actual: bool = False

    @property
    def writable_config(self) -> frozenset[int]:
        """The bytes of the configuration space that are there, and that a driver may write."""
        return self.config_writable & frozenset(range(self.config_size))

    def offering(self, features: int) -> "Personality":
        """Return the same device when it offers the feature word ``features``."""
        if not self.config_by_features or has_feature(features, BalloonFeature.PAGE_POISON):
            return replace(self, features=features)
        fields = 3 if has_feature(features, BalloonFeature.FREE_PAGE_HINT) else 2
        return replace(self, features=features, config_size=4 * fields)


OURS: Final = Personality(name="vhost-user-balloon", source="this project: host/README.md")

_TEXT: Final = Personality(
    name="text",
    source="virtio 1.2, 5.5: the numbers of 5.5.2; 5.5.6.7.2 keeps pages with a pattern, of reports alone",
    queue_numbers=QueueDialect.FIXED,
    poison_keeps=frozenset({BalloonQueue.REPORTING}),
)

_QEMU: Final = Personality(
    name="qemu",
    source="QEMU hw/virtio/virtio-balloon.c: virtio_balloon_handle_report, virtio_balloon_config_size, "
    "virtio_balloon_device_reset; the properties' defaults, with free-page-reporting=on. virtqueue_map_desc "
    "(hw/virtio/virtio.c) maps what is no memory into one bounce buffer of a page, and more of it, or a descriptor of "
    "no bytes, breaks the device",
    features=TRANSPORT
    | feature_mask(
        FeatureBit.RING_EVENT_IDX,
        FeatureBit.RING_INDIRECT_DESC,
        BalloonFeature.STATS_VQ,
        BalloonFeature.PAGE_POISON,
        BalloonFeature.PAGE_REPORTING,
    ),
    queue_numbers=QueueDialect.OFFERED,
    config_by_features=True,
    ranges=RangeRules(clamps=True),
    poison_keeps=frozenset({BalloonQueue.REPORTING}),
    outside_max=PAGE_SIZE,
    breaks_empty=True,
    keeps_actual=True,
)

_FIRECRACKER: Final = Personality(
    name="firecracker",
    source="Firecracker src/vmm/src/devices/virtio/balloon/device.rs: process_free_page_reporting_queue, write_config",
    features=TRANSPORT
    | feature_mask(BalloonFeature.STATS_VQ, BalloonFeature.DEFLATE_ON_OOM, BalloonFeature.PAGE_REPORTING),
    queue_numbers=QueueDialect.OFFERED,
    config_size=12,
    config_writable=frozenset(range(12)),
    takes_readable=True,
    ranges=RangeRules(ragged=Ragged.ROUNDED_UP),
)

_CLOUD_HYPERVISOR: Final = Personality(
    name="cloud-hypervisor",
    source="Cloud Hypervisor virtio-devices/src/balloon.rs: process_reporting_queue, release_memory_range; statistics "
    "came later",
    features=TRANSPORT | feature_mask(BalloonFeature.DEFLATE_ON_OOM, BalloonFeature.PAGE_REPORTING),
    queue_numbers=QueueDialect.OFFERED,
    config_size=8,
    report_length=ReportLength.SUM,
    takes_readable=True,
    ranges=RangeRules(ragged=Ragged.ZEROED, clamps=True),
)

_CROSVM: Final = Personality(
    name="crosvm",
    source="crosvm devices/src/virtio/balloon.rs; numbers of its change 6454902 (2025); its working set bit 8 and "
    "SUSPEND are left out, so the last field of its configuration space is zero",
    features=TRANSPORT
    | feature_mask(
        FeatureBit.RING_EVENT_IDX,
        BalloonFeature.MUST_TELL_HOST,
        BalloonFeature.STATS_VQ,
        BalloonFeature.DEFLATE_ON_OOM,
        BalloonFeature.PAGE_REPORTING,
    ),
    queue_numbers=QueueDialect.OFFERED,
    config_size=20,
    takes_readable=True,
    ranges=RangeRules(ragged=Ragged.ROUNDED_UP),
)

_LIBKRUN: Final = Personality(
    name="libkrun",
    source="libkrun src/devices/src/virtio/balloon: only the reporting queue is processed, and an address outside of "
    "memory is a panic there",
    features=TRANSPORT
    | feature_mask(BalloonFeature.STATS_VQ, BalloonFeature.FREE_PAGE_HINT, BalloonFeature.PAGE_REPORTING),
    queue_numbers=QueueDialect.FIXED,
    takes_readable=True,
    ranges=RangeRules(ragged=Ragged.ROUNDED_UP),
    serves=frozenset({BalloonQueue.REPORTING}),
    outside_max=0,
)

PERSONALITIES: Final[Mapping[str, Personality]] = MappingProxyType(
    {each.name: each for each in (OURS, _QEMU, _FIRECRACKER, _CLOUD_HYPERVISOR, _CROSVM, _LIBKRUN, _TEXT)}
)
"""By the names that ``--personality`` takes."""
