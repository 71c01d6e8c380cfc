"""The messages of a recording in words."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from protocol.balloon_config import BalloonConfig
from protocol.errors import VhostUserError
from protocol.memory import MemoryRegion
from protocol.recording.records import FileFact, WireMessage
from protocol.units import format_size
from protocol.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature, Request, form_of
from protocol.vhost_user_codec import Channel, parse_payload
from protocol.vhost_user_payloads import (
    U64,
    DeviceConfig,
    DeviceStateTransfer,
    InflightDescription,
    LogDescription,
    MemoryTable,
    Payload,
    VringAddress,
    VringFile,
    VringState,
)
from protocol.virtio import has_feature, status_names
from protocol.virtio_balloon import feature_bit_names

CASE: Final = "case"
"""The remark that a case of a check begins: its ``name`` and what it ``says`` is right."""

VERDICT: Final = "verdict"
"""The remark that a case is over: its ``name``, ``verdict``, ``reason`` and the ``clauses`` that it is about."""

STRUCK: Final = "fault"
"""The remark that a fault of the proxy's script was carried out: its ``line`` and the ``rule``."""

CLOSED: Final = "the check closed the connection"
"""The reason of a session's end, where a check recorded it and had no more to ask."""

_FROM_BACK_END: Final = (Channel.BACKEND_REPLIES, Channel.BACKEND_REQUESTS)


class ReadMessage(NamedTuple):
    """A message as it reads: its request, None for an unknown number, its name, its payload, and what is wrong with the
    payload's form, "" for nothing."""

    request: Request | None
    name: str
    payload: Payload
    wrong: str = ""


def read_message(message: WireMessage) -> ReadMessage:
    """Return ``message`` with its number and payload understood as far as they go. Never raises."""
    numbers = FrontendRequest if message.stream in _FRONT_END_NUMBERS else BackendRequest
    try:
        request: Request = numbers(message.request)
    except ValueError:
        return ReadMessage(None, f"request {message.request}", None, "an unknown request")
    form = form_of(request).payload
    if message.stream.carries_replies:
        form = (form_of(request).reply or U64) if message.payload else None
    try:
        if form is None and message.payload:
            raise VhostUserError(f"{len(message.payload)} bytes of payload in a request without one")
        payload = None if form is None else parse_payload(form, message.payload)
    except VhostUserError as error:
        return ReadMessage(request, request.name, None, str(error))
    return ReadMessage(request, request.name, payload)


_FRONT_END_NUMBERS: Final = (Channel.FRONTEND_REQUESTS, Channel.BACKEND_REPLIES)


def is_from_back_end(stream: Channel) -> bool:
    """Return whether the back-end sends on ``stream``."""
    return stream in _FROM_BACK_END


def protocol_feature_names(features: int) -> list[str]:
    """Return a name for each bit that is set in a word of protocol features."""
    names = {bit.value: bit.name for bit in ProtocolFeature}
    return [names.get(bit, f"bit-{bit}") for bit in range(64) if has_feature(features, bit)]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "nothing"


def _status(status: Any) -> str:
    return f"device status {status:#x}: {_listed(status_names(status))}"


def _region(region: MemoryRegion) -> str:
    return (
        f"region at guest address {region.guest_address:#x}, {format_size(region.size)}, user address "
        f"{region.user_address:#x}, at {region.mmap_offset:#x} of its file"
    )


def _table(table: MemoryTable) -> str:
    return "; ".join(map(_region, table.regions)) or "no region: the machine has no memory"


def _address(address: VringAddress) -> str:
    log = f", writes logged at {address.log:#x}" if address.flags & 1 else ""
    return (
        f"queue {address.index}: descriptors at {address.descriptor:#x}, driver area at {address.available:#x}, "
        f"device area at {address.used:#x} (user addresses){log}"
    )


def _file(what: str) -> Callable[[VringFile], str]:
    def say(file: VringFile) -> str:
        comes = f"by this descriptor {what}" if file.has_file else f"no descriptor {what}"
        return f"queue {file.index}: {comes}"

    return say


def _config(config: DeviceConfig) -> str:
    text = f"{len(config.data)} bytes at {config.offset}: {config.data.hex(' ', 4)}"
    if config.offset or len(config.data) < len(BalloonConfig().build()):
        return text
    fields = BalloonConfig.parse(config.data)
    return (
        f"{text}: num_pages {fields.num_pages}, actual {fields.actual}, command id {fields.free_page_hint_cmd_id}, "
        f"poison {fields.poison_val:#x}"
    )


def _ask_config(config: DeviceConfig) -> str:
    return f"asks for {len(config.data)} bytes of the configuration space at {config.offset}"


def _inflight(inflight: InflightDescription) -> str:
    return (
        f"{inflight.num_queues} queues of {inflight.queue_size}, {inflight.mmap_size} bytes at {inflight.mmap_offset}"
    )


def _log(log: LogDescription) -> str:
    return f"the dirty log has {format_size(log.size)} at {log.offset} of this file"


def _transfer(transfer: DeviceStateTransfer) -> str:
    return f"{'load' if transfer.direction else 'save'} the device's state through this descriptor"


def _numbered(text: str) -> Callable[[VringState], str]:
    return lambda state: text.format(index=state.index, num=state.num, hex=f"{state.num:#x}")


def _fixed(text: str) -> Callable[[Any], str]:
    return lambda _payload: text


_FRONT_END_SAYS: Final[Mapping[FrontendRequest, Callable[[Any], str]]] = MappingProxyType(
    {
        FrontendRequest.GET_FEATURES: _fixed("which features does the device offer?"),
        FrontendRequest.SET_FEATURES: lambda word: f"the driver takes {_listed(feature_bit_names(word))}",
        FrontendRequest.SET_OWNER: _fixed("this session begins"),
        FrontendRequest.RESET_OWNER: _fixed("the session's owner leaves (deprecated)"),
        FrontendRequest.SET_MEM_TABLE: _table,
        FrontendRequest.SET_LOG_BASE: _log,
        FrontendRequest.SET_LOG_FD: _fixed("signal here when something was logged"),
        FrontendRequest.SET_VRING_NUM: _numbered("queue {index} has {num} entries"),
        FrontendRequest.SET_VRING_ADDR: _address,
        FrontendRequest.SET_VRING_BASE: _numbered("queue {index} begins at {hex}"),
        FrontendRequest.GET_VRING_BASE: _numbered("stop queue {index}: where would it go on?"),
        FrontendRequest.GET_VRING_BASE_SKIP_DRAIN: _numbered("stop queue {index} at once: where would it go on?"),
        FrontendRequest.SET_VRING_KICK: _file("the driver kicks"),
        FrontendRequest.SET_VRING_CALL: _file("the device interrupts"),
        FrontendRequest.SET_VRING_ERR: _file("the device tells of a broken ring"),
        FrontendRequest.GET_PROTOCOL_FEATURES: _fixed("which protocol features does the back-end have?"),
        FrontendRequest.SET_PROTOCOL_FEATURES: lambda word: f"uses {_listed(protocol_feature_names(word))}",
        FrontendRequest.GET_QUEUE_NUM: _fixed("how many queues may a driver use?"),
        FrontendRequest.SET_VRING_ENABLE: lambda state: f"{'enable' if state.num else 'disable'} queue {state.index}",
        FrontendRequest.SET_BACKEND_REQ_FD: _fixed("the back-end's own requests go here"),
        FrontendRequest.GET_CONFIG: _ask_config,
        FrontendRequest.SET_CONFIG: lambda config: f"the driver writes {_config(config)}",
        FrontendRequest.GET_INFLIGHT_FD: lambda inflight: f"a file for chains in flight of {_inflight(inflight)}?",
        FrontendRequest.SET_INFLIGHT_FD: lambda inflight: f"note chains in flight in this file: {_inflight(inflight)}",
        FrontendRequest.RESET_DEVICE: _fixed("reset the device"),
        FrontendRequest.VRING_KICK: _numbered("kicks queue {index}"),
        FrontendRequest.GET_MAX_MEM_SLOTS: _fixed("how many memory regions may there be?"),
        FrontendRequest.ADD_MEM_REG: _region,
        FrontendRequest.REM_MEM_REG: _region,
        FrontendRequest.SET_STATUS: _status,
        FrontendRequest.GET_STATUS: _fixed("what is the device status?"),
        FrontendRequest.SET_DEVICE_STATE_FD: _transfer,
        FrontendRequest.CHECK_DEVICE_STATE: _fixed("was the device's state transferred?"),
    }
)

_BACK_END_SAYS: Final[Mapping[BackendRequest, Callable[[Any], str]]] = MappingProxyType(
    {
        BackendRequest.CONFIG_CHANGE_MSG: _fixed("the configuration space or the device status has changed"),
        BackendRequest.VRING_CALL: _numbered("interrupts the driver of queue {index}"),
        BackendRequest.VRING_ERR: _numbered("queue {index} is broken"),
    }
)

_REPLIES: Final[Mapping[FrontendRequest, Callable[[Any], str]]] = MappingProxyType(
    {
        FrontendRequest.GET_FEATURES: lambda word: f"offers {_listed(feature_bit_names(word))}",
        FrontendRequest.GET_PROTOCOL_FEATURES: lambda word: f"has {_listed(protocol_feature_names(word))}",
        FrontendRequest.GET_QUEUE_NUM: lambda number: f"{number} queues",
        FrontendRequest.GET_VRING_BASE: _numbered("queue {index} has stopped and would go on at {hex}"),
        FrontendRequest.GET_VRING_BASE_SKIP_DRAIN: _numbered("queue {index} has stopped and would go on at {hex}"),
        FrontendRequest.GET_CONFIG: _config,
        FrontendRequest.GET_INFLIGHT_FD: _inflight,
        FrontendRequest.GET_MAX_MEM_SLOTS: lambda number: f"{number} memory regions",
        FrontendRequest.GET_STATUS: _status,
        FrontendRequest.SET_DEVICE_STATE_FD: lambda word: "refused" if word & 0xFF else "the transfer begins",
        FrontendRequest.CHECK_DEVICE_STATE: lambda word: "it failed" if word else "it was transferred",
        FrontendRequest.SET_LOG_BASE: lambda word: "refused" if word else "the log is in use",
    }
)

assert set(_FRONT_END_SAYS) == set(FrontendRequest)
assert set(_BACK_END_SAYS) == set(BackendRequest)


def say(message: WireMessage, read: ReadMessage) -> str:
    """Return what ``message`` means, one sentence without a full stop."""
    if read.wrong:
        return f"{read.wrong}: {message.payload[:32].hex(' ', 4)}" if message.payload else read.wrong
    if read.request is None:
        return ""
    if not message.stream.carries_replies:
        # Two tables, because the numbers of the two directions overlap.
        if isinstance(read.request, FrontendRequest):
            return _FRONT_END_SAYS[read.request](read.payload)
        return _BACK_END_SAYS[read.request](read.payload)
    if read.payload is None:
        return "refused"
    if isinstance(read.request, FrontendRequest) and read.request in _REPLIES:
        return _REPLIES[read.request](read.payload)
    return "refused" if read.payload else "done"


def say_file(file: FileFact) -> str:
    """Return what a descriptor is."""
    return file.kind if file.size < 0 else f"{file.kind} of {format_size(file.size)}"
