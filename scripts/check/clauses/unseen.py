"""Why no case exercises a clause: what it permits cannot be broken, or its keeping cannot be seen from the wire."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_PERMITS: Final = "It permits something, so that a driver that does it and one that does not both keep it."
_INSIDE: Final = "What a guest does with its own pages afterwards is not seen from its device."
_LEGACY: Final = "It binds legacy devices and drivers, which have no VERSION_1; those that are judged have it."
_RING_RESET: Final = "RING_RESET needs a register of the transport, and vhost-user has no message for it."
_SUSPEND: Final = "SUSPEND is of virtio 1.4 and has no message of vhost-user."

UNSEEN: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("BI-3", "BI-5", "BI-8", "BI-12", "BS-6", "BS-7", "BH-7", "BR-4"), _PERMITS)
    | dict.fromkeys(("BH-8", "BH-9", "BP-1"), _INSIDE)
    | dict.fromkeys(("BF-5", "BI-15", "BS-11", "BH-17"), _LEGACY)
    | dict.fromkeys(("G-14", "G-15", "G-16", "G-17"), _RING_RESET)
    | dict.fromkeys(("G-20", "G-21"), _SUSPEND)
    | {
        "BF-4": "It permits the device to refuse, and vhost-user has no FEATURES_OK to refuse with.",
        "BH-14": "Whether a guest wrote a page since it was hinted is known to the host alone, by dirty logging.",
        "S-18": "Which bytes of a buffer a driver reads is not seen from its device.",
        "V-53": "The device that watches a driver always offers bit 30: without it there is no configuration space.",
        "P-7": "NOTIFICATION_DATA needs a transport that carries data with a kick, and an eventfd has none.",
    }
)
"""Reasons by the ids of the clauses."""
