"""How the balloon device at one socket is to be: as the operator says it, and as sessions and workers take it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from host.balloon.offered_features import OFFERED, check_dependencies, switch_features
from host.balloon.personality import OURS, PERSONALITIES
from host.control.guest_ram import RESERVE_BYTES
from host.vhost_user.queue_numbers import AUTO
from protocol.errors import UsageError
from protocol.units import format_size
from protocol.virtio_balloon import NUM_PAGES_MAX, PFN_SHIFT


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """The device of the guests at one socket.

    ``features`` is the feature word that it offers, ``personality`` the name of its habits, apart from its features
    and queue numbers. It discards what it is given if ``discard``. Its balloon begins with the target of
    ``balloon_pages``. ``queue_numbers`` is one of :data:`host.vhost_user.queue_numbers.CHOICES`. ``in_band`` offers
    notifications as messages. Statistics are requested every ``statistics_interval`` seconds, or for 0 only on demand.
    ``guest_memory`` is the memory of a guest in bytes, 0 if that is not stated, and ``guest_reserve`` the bytes that a
    balloon leaves it at least. ``name`` is what guests are called, "" to look for a name; ``socket_name`` is that of
    the socket they connect to, "" if it has none.
    """

    features: int = OFFERED
    personality: str = OURS.name
    discard: bool = True
    balloon_pages: int = 0
    queue_numbers: str = AUTO
    in_band: bool = False
    statistics_interval: int = 0
    guest_memory: int = 0
    guest_reserve: int = RESERVE_BYTES
    name: str = ""
    socket_name: str = ""

    def build(self) -> bytes:
        """Return the bytes that :func:`parse_device_options` reads."""
        return json.dumps(asdict(self)).encode()


def parse_device_options(data: bytes) -> DeviceOptions:
    """Return what :meth:`DeviceOptions.build` has written; the sender is trusted to be of the same version."""
    values: dict[str, Any] = json.loads(data)
    return DeviceOptions(**values)


DEFAULT_DEVICE: Final = DeviceOptions()
"""The device without any option."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """What the operator says of a device: options as they are written, before they are put together.

    ``switches`` are the features that are switched on or off, ``balloon`` is in bytes, ``queue_numbers`` is None where
    the personality decides. The others are those of :class:`DeviceOptions`.
    """

    personality: str = OURS.name
    switches: Mapping[str, bool] = field(default_factory=dict)
    queue_numbers: str | None = None
    discard: bool = True
    balloon: int = 0
    in_band: bool = False
    statistics_interval: int = 0
    guest_memory: int = 0
    guest_reserve: int = RESERVE_BYTES

    def options(self, name: str, socket_path: Path | None) -> DeviceOptions:
        """Return the device of the guests at ``socket_path`` that are called ``name``, "" to look for a name.

        Raises:
            UsageError: a feature without the one that it is about.
        """
        personality = PERSONALITIES[self.personality]
        features = switch_features(personality.features, self.switches)
        check_dependencies(features)
        dialect = personality.queue_numbers
        return DeviceOptions(
            features=features,
            personality=self.personality,
            discard=self.discard,
            balloon_pages=balloon_pages(self.balloon),
            queue_numbers=self.queue_numbers or (AUTO if dialect is None else dialect.value),
            in_band=self.in_band,
            statistics_interval=self.statistics_interval,
            guest_memory=self.guest_memory,
            guest_reserve=self.guest_reserve,
            name=name,
            socket_name="" if socket_path is None else socket_path.stem,
        )


def balloon_pages(size: int) -> int:
    """Return the pages of a balloon of ``size`` bytes. Raises :class:`UsageError` if they are not whole or too many."""
    pages, ragged = divmod(size, 1 << PFN_SHIFT)
    if ragged:
        raise UsageError(f"not whole pages of {1 << PFN_SHIFT} bytes")
    if pages > NUM_PAGES_MAX:
        raise UsageError(f"a balloon is smaller than {format_size((NUM_PAGES_MAX + 1) << PFN_SHIFT)}")
    return pages
