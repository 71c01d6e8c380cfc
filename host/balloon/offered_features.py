"""Which feature bits the device offers to drivers: by default, and as ``--features`` switches them.

Source: virtio 1.2, 5.5.3 (the balloon's own) and 6 (what all devices share).
"""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from protocol.errors import UsageError
from protocol.virtio import FeatureBit, feature_mask, has_feature
from protocol.virtio_balloon import BalloonFeature

TRANSPORT: Final = feature_mask(
    FeatureBit.VERSION_1, FeatureBit.VHOST_USER_F_PROTOCOL_FEATURES, FeatureBit.VHOST_F_LOG_ALL
)
"""Feature bits that are always offered: those of the vhost-user session, and of a device that is no legacy one."""

OFFERED: Final = TRANSPORT | feature_mask(
    FeatureBit.RING_EVENT_IDX,
    FeatureBit.RING_INDIRECT_DESC,
    BalloonFeature.PAGE_REPORTING,
    BalloonFeature.STATS_VQ,
    BalloonFeature.DEFLATE_ON_OOM,
)
"""Feature bits that the device offers unless told otherwise.

Not among them: FREE_PAGE_HINT, see :mod:`host.balloon.free_page_hinting`; and MUST_TELL_HOST, which makes a driver wait
for the acknowledgement when it takes pages back, and this device does nothing in that time; and the two of drafts, see
:mod:`host.balloon.device_init`.
"""

FEATURE_NAMES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "page-reporting": BalloonFeature.PAGE_REPORTING,
        "statistics": BalloonFeature.STATS_VQ,
        "free-page-hint": BalloonFeature.FREE_PAGE_HINT,
        "deflate-on-oom": BalloonFeature.DEFLATE_ON_OOM,
        "must-tell-host": BalloonFeature.MUST_TELL_HOST,
        "page-poison": BalloonFeature.PAGE_POISON,
        "packed": FeatureBit.RING_PACKED,
        "indirect": FeatureBit.RING_INDIRECT_DESC,
        "event-idx": FeatureBit.RING_EVENT_IDX,
        "in-order": FeatureBit.IN_ORDER,
        "draft-init-reported": BalloonFeature.DEVICE_INIT_REPORTED,
        "draft-init-on-inflate": BalloonFeature.DEVICE_INIT_ON_INFLATE,
    }
)
"""Bit numbers by the names that people use for them."""


def parse_features(text: str) -> dict[str, bool]:
    """Return what ``name=on|off,...`` switches on and off, by name.

    Raises:
        UsageError: an unknown name, another value than on or off, or a name that comes twice.
    """
    switches: dict[str, bool] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name not in FEATURE_NAMES:
            raise UsageError(f"no feature {name!r}, known are {', '.join(FEATURE_NAMES)}")
        if value not in ("on", "off"):
            raise UsageError(f"write {name}=on or {name}=off, not {item.strip()!r}")
        if name in switches:
            raise UsageError(f"{name} comes twice")
        switches[name] = value == "on"
    return switches


def switch_features(features: int, switches: Mapping[str, bool]) -> int:
    """Return the feature word ``features`` with the bits of ``switches`` set or cleared, the others as they are."""
    for name, on in switches.items():
        bit = feature_mask(FEATURE_NAMES[name])
        features = features | bit if on else features & ~bit
    return features


def feature_names(features: int) -> list[str]:
    """Return the names of the feature bits that are set in ``features``; bits without a name are left out."""
    return list(_names(features))


@lru_cache(maxsize=256)
def _names(features: int) -> tuple[str, ...]:
    # Asked for each machine at each look, and nearly all have the same.
    return tuple(name for name, bit in FEATURE_NAMES.items() if has_feature(features, bit))


def check_dependencies(features: int) -> None:
    """Check the feature word ``features`` of an offer: a device must not offer a feature without those that it needs
    (virtio 1.2, 2.2.2).

    Raises:
        UsageError: it has a feature without the one that this feature is about.
    """
    if has_feature(features, BalloonFeature.DEVICE_INIT_REPORTED) and not has_feature(
        features, BalloonFeature.PAGE_REPORTING
    ):
        raise UsageError("--features: draft-init-reported needs page-reporting")
