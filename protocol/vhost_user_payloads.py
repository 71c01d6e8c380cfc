"""The payloads of the vhost-user messages: frozen values, and their layouts declared with construct.

Source: the vhost-user specification (QEMU ``docs/interop/vhost-user.rst``), section "Message Specification". Numbers
are in the machine's byte order, which for this project is little-endian.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Final, TypeAlias

from construct import Array, Bytes, Construct, Int16ul, Int32ul, Int64ul, Struct, this

from protocol.errors import VhostUserError
from protocol.memory import GuestAddress, MemoryRegion, UserAddress


class VringAddressFlag(IntFlag):
    """Flags of SET_VRING_ADDR."""

    LOG = 1


@dataclass(frozen=True, slots=True)
class VringState:
    """ "A vring state description": a queue's number and a number that belongs to it (size, base, enable)."""

    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringFile:
    """Payload of SET_VRING_KICK, _CALL and _ERR: the queue, and whether a file descriptor comes along (bit 8 clear)."""

    index: int
    has_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VringAddress:
    """ "A vring address description". Addresses are user addresses; on the wire the used ring stands before avail."""

    index: int
    flags: int
    descriptor: UserAddress
    used: UserAddress
    available: UserAddress
    log: int = 0


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """ "Multiple Memory regions description": the whole memory, replacing what was there."""

    regions: tuple[MemoryRegion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """ "Virtio device config space": bytes of it at ``offset``. In a GET_CONFIG request only their number counts."""

    offset: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LogDescription:
    """ "Log description": the shared dirty log, in bytes."""

    size: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InflightDescription:
    """ "Inflight description". 24 bytes on the wire: peers send the C structure's size, padding included."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


@dataclass(frozen=True, slots=True)
class DeviceStateTransfer:
    """ "Device state transfer parameters": direction 0 save, 1 load; phase 0 stopped."""

    direction: int
    phase: int


DEVICE_STATE_SAVE: Final = 0
DEVICE_STATE_LOAD: Final = 1
DEVICE_STATE_STOPPED: Final = 0  # the only phase
DEVICE_STATE_NO_FD: Final = 0x100
"""In the reply to SET_DEVICE_STATE_FD: the front-end's own descriptor is used. Bits 0 to 7 are an error, 0 for none."""


Payload: TypeAlias = (
    int
    | VringState
    | VringFile
    | VringAddress
    | MemoryTable
    | MemoryRegion
    | DeviceConfig
    | LogDescription
    | InflightDescription
    | DeviceStateTransfer
    | None
)

_U64: Final = Struct("value" / Int64ul)
_VRING_STATE: Final = Struct("index" / Int32ul, "num" / Int32ul)
_VRING_ADDRESS: Final = Struct(
    "index" / Int32ul,
    "flags" / Int32ul,
    "descriptor" / Int64ul,
    "used" / Int64ul,
    "available" / Int64ul,
    "log" / Int64ul,
)
_REGION: Final = Struct("guest_address" / Int64ul, "size" / Int64ul, "user_address" / Int64ul, "mmap_offset" / Int64ul)
_MEMORY_TABLE: Final = Struct("count" / Int32ul, "padding" / Int32ul, "regions" / Array(this.count, _REGION))
_SINGLE_REGION: Final = Struct("padding" / Int64ul, "region" / _REGION)
_CONFIG: Final = Struct("offset" / Int32ul, "size" / Int32ul, "flags" / Int32ul, "data" / Bytes(this.size))
_LOG: Final = Struct("size" / Int64ul, "offset" / Int64ul)
_INFLIGHT: Final = Struct(
    "mmap_size" / Int64ul,
    "mmap_offset" / Int64ul,
    "num_queues" / Int16ul,
    "queue_size" / Int16ul,
    "padding" / Int32ul,
)
_DEVICE_STATE: Final = Struct("direction" / Int32ul, "phase" / Int32ul)

assert _VRING_ADDRESS.sizeof() == 40
assert _REGION.sizeof() == 32
assert _SINGLE_REGION.sizeof() == 40
assert _INFLIGHT.sizeof() == 24


@dataclass(frozen=True, slots=True)
class PayloadForm:
    """How one kind of payload becomes a value and back. ``may_be_longer`` allows trailing bytes."""

    name: str
    layout: "Construct[Any, Any]"  # generic in its type stubs only
    to_value: Callable[[Any], Payload]
    to_fields: Callable[[Any], dict[str, object]]
    may_be_longer: bool = False


def _region_value(fields: Any) -> MemoryRegion:
    return MemoryRegion(
        guest_address=GuestAddress(fields.guest_address),
        size=fields.size,
        user_address=UserAddress(fields.user_address),
        mmap_offset=fields.mmap_offset,
    )


def _region_fields(region: MemoryRegion) -> dict[str, object]:
    return {
        "guest_address": region.guest_address,
        "size": region.size,
        "user_address": region.user_address,
        "mmap_offset": region.mmap_offset,
    }


_NO_FILE: Final = 0x100


def _vring_file_value(fields: Any) -> VringFile:
    if fields.value > 0x1FF:
        raise VhostUserError(f"queue number {fields.value:#x} has reserved bits set")
    return VringFile(fields.value & 0xFF, not fields.value & _NO_FILE)


def _memory_table_value(fields: Any) -> MemoryTable:
    return MemoryTable(tuple(_region_value(region) for region in fields.regions))


def _fields_of(*names: str) -> Callable[[Any], dict[str, object]]:
    return lambda value: {name: getattr(value, name) for name in names} | {"padding": 0}


U64: Final = PayloadForm("u64", _U64, lambda fields: int(fields.value), lambda value: {"value": value})
VRING_STATE: Final = PayloadForm(
    "vring state", _VRING_STATE, lambda fields: VringState(fields.index, fields.num), _fields_of("index", "num")
)
VRING_FILE: Final = PayloadForm(
    "vring file",
    _U64,
    _vring_file_value,
    lambda value: {"value": value.index | (0 if value.has_file else _NO_FILE)},
)
VRING_ADDRESS: Final = PayloadForm(
    "vring address",
    _VRING_ADDRESS,
    lambda fields: VringAddress(
        index=fields.index,
        flags=fields.flags,
        descriptor=UserAddress(fields.descriptor),
        used=UserAddress(fields.used),
        available=UserAddress(fields.available),
        log=fields.log,
    ),
    _fields_of("index", "flags", "descriptor", "used", "available", "log"),
)
# User Mode Linux before 6.13 sends the C structure's full 72 bytes with one region in it, hence may_be_longer.
MEMORY_TABLE: Final = PayloadForm(
    "memory table",
    _MEMORY_TABLE,
    _memory_table_value,
    lambda value: {
        "count": len(value.regions),
        "padding": 0,
        "regions": [_region_fields(region) for region in value.regions],
    },
    may_be_longer=True,
)
SINGLE_REGION: Final = PayloadForm(
    "memory region",
    _SINGLE_REGION,
    lambda fields: _region_value(fields.region),
    lambda value: {"padding": 0, "region": _region_fields(value)},
)
CONFIG: Final = PayloadForm(
    "config space",
    _CONFIG,
    lambda fields: DeviceConfig(offset=fields.offset, flags=fields.flags, data=bytes(fields.data)),
    lambda value: {"offset": value.offset, "size": len(value.data), "flags": value.flags, "data": value.data},
)
LOG: Final = PayloadForm(
    "log", _LOG, lambda fields: LogDescription(fields.size, fields.offset), _fields_of("size", "offset")
)
INFLIGHT: Final = PayloadForm(
    "inflight",
    _INFLIGHT,
    lambda fields: InflightDescription(
        mmap_size=fields.mmap_size,
        mmap_offset=fields.mmap_offset,
        num_queues=fields.num_queues,
        queue_size=fields.queue_size,
    ),
    _fields_of("mmap_size", "mmap_offset", "num_queues", "queue_size"),
)
DEVICE_STATE: Final = PayloadForm(
    "device state",
    _DEVICE_STATE,
    lambda fields: DeviceStateTransfer(fields.direction, fields.phase),
    _fields_of("direction", "phase"),
)
