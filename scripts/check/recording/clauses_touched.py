"""Which clauses a message or a step of a ring touches, by their ids in the table of clauses."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from protocol.vhost_user import BackendRequest, FrontendRequest, Request

CLAUSES_OF_FRONT_END: Final[Mapping[FrontendRequest, tuple[str, ...]]] = MappingProxyType(
    {
        FrontendRequest.GET_FEATURES: ("V-16", "G-7"),
        FrontendRequest.SET_FEATURES: ("V-13", "V-17", "G-5"),
        FrontendRequest.SET_OWNER: ("V-20",),
        FrontendRequest.RESET_OWNER: ("V-20",),
        FrontendRequest.SET_MEM_TABLE: ("V-21", "V-22", "V-23", "V-24"),
        FrontendRequest.SET_LOG_BASE: ("V-48", "V-49"),
        FrontendRequest.SET_LOG_FD: ("V-49",),
        FrontendRequest.SET_VRING_NUM: ("V-28", "V-29", "V-31"),
        FrontendRequest.SET_VRING_ADDR: ("V-28", "V-30", "V-31"),
        FrontendRequest.SET_VRING_BASE: ("V-28", "V-32"),
        FrontendRequest.GET_VRING_BASE: ("V-33", "V-36"),
        FrontendRequest.GET_VRING_BASE_SKIP_DRAIN: ("V-33", "V-36"),
        FrontendRequest.SET_VRING_KICK: ("V-40", "V-41", "V-42"),
        FrontendRequest.SET_VRING_CALL: ("V-40", "V-42", "V-43"),
        FrontendRequest.SET_VRING_ERR: ("V-40", "V-42"),
        FrontendRequest.GET_PROTOCOL_FEATURES: ("V-14",),
        FrontendRequest.SET_PROTOCOL_FEATURES: ("V-14", "V-15", "V-18"),
        FrontendRequest.GET_QUEUE_NUM: ("V-19",),
        FrontendRequest.SET_VRING_ENABLE: ("V-34", "V-35", "V-38"),
        FrontendRequest.SET_BACKEND_REQ_FD: ("V-51",),
        FrontendRequest.GET_CONFIG: ("V-44",),
        FrontendRequest.SET_CONFIG: ("V-45",),
        FrontendRequest.GET_INFLIGHT_FD: ("V-46",),
        FrontendRequest.SET_INFLIGHT_FD: ("V-47",),
        FrontendRequest.RESET_DEVICE: ("V-39", "G-10"),
        FrontendRequest.VRING_KICK: ("V-18", "V-41"),
        FrontendRequest.GET_MAX_MEM_SLOTS: ("V-25",),
        FrontendRequest.ADD_MEM_REG: ("V-22", "V-25"),
        FrontendRequest.REM_MEM_REG: ("V-26", "V-27"),
        FrontendRequest.SET_STATUS: ("G-4", "G-18"),
        FrontendRequest.GET_STATUS: ("G-2", "G-10"),
        FrontendRequest.SET_DEVICE_STATE_FD: ("V-50",),
        FrontendRequest.CHECK_DEVICE_STATE: ("V-50",),
    }
)
"""The clauses of each request of a front-end."""

CLAUSES_OF_BACK_END: Final[Mapping[BackendRequest, tuple[str, ...]]] = MappingProxyType(
    {
        BackendRequest.CONFIG_CHANGE_MSG: ("G-3",),
        BackendRequest.VRING_CALL: ("V-18", "V-43"),
        BackendRequest.VRING_ERR: ("G-2",),
    }
)
"""The clauses of each request of a back-end."""

CLAUSES_OF_QUEUE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "inflate": ("BI-9", "BI-13"),
        "deflate": ("BI-6", "BI-7", "BI-10"),
        "stats": ("BS-1", "BS-8", "BS-9"),
        "free_page": ("BH-1", "BH-13", "BH-15"),
        "reporting": ("BR-3", "BR-7", "BR-8"),
    }
)
"""The clauses of a chain by its queue."""


def clauses_of(request: Request) -> tuple[str, ...]:
    """Return the clauses that ``request`` touches. Two tables, because the numbers of the two directions overlap."""
    if isinstance(request, FrontendRequest):
        return CLAUSES_OF_FRONT_END[request]
    return CLAUSES_OF_BACK_END[request]


def clauses_of_used(*, packed: bool, event_idx: bool) -> tuple[str, ...]:
    """Return the clauses of giving a chain back, and of the call that goes with it."""
    if packed:
        return "P-16", "P-14"
    return "S-17", "S-16" if event_idx else "S-15"
