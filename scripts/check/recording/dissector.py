"""Generates the Lua dissector for Wireshark that takes exported recordings apart.

Requests, payload forms, flags, features and queue names are those of the tables in :mod:`protocol`: the dissector is
never older than they are. What it does with them is :mod:`scripts.check.recording.dissector_program`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from construct import Array, Bytes, FormatField, Struct

from protocol.vhost_user import (
    BACKEND_REQUEST_FORMS,
    FRONTEND_REQUEST_FORMS,
    BackendRequest,
    FrontendRequest,
    HeaderFlag,
    ProtocolFeature,
    RequestForm,
)
from protocol.vhost_user_payloads import U64, PayloadForm
from protocol.virtio import DeviceStatus
from protocol.virtio_balloon import BalloonFeature, BalloonQueue, feature_bit_names, queue_order
from scripts.check.recording.dissector_program import PROGRAM
from scripts.check.recording.pcapng import (
    KIND_CHAIN,
    KIND_MESSAGE,
    KIND_NOISE,
    KIND_TEXT,
    KIND_USED,
    PREFIX_VERSION,
    STREAMS,
)

_BITS_OF: Final[dict[str, str]] = {
    "SET_FEATURES": "features",
    "GET_FEATURES reply": "features",
    "SET_PROTOCOL_FEATURES": "protocol_features",
    "GET_PROTOCOL_FEATURES reply": "protocol_features",
    "SET_STATUS": "status",
    "GET_STATUS reply": "status",
}
"""The 64-bit payloads whose bits have names."""


def build_dissector() -> str:
    """Return the text of the dissector."""
    tables = "\n".join(_tables())
    return PROGRAM.replace("@TABLES@", tables)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _table(name: str, rows: Iterable[tuple[int | str, str]]) -> Iterator[str]:
    yield f"local {name} = {{"
    for key, value in rows:
        yield f"  [{key if isinstance(key, int) else _quoted(key)}] = {value},"
    yield "}"


def _tables() -> Iterator[str]:
    numbers = {
        "PREFIX_VERSION": PREFIX_VERSION,
        "KIND_MESSAGE": KIND_MESSAGE,
        "KIND_NOISE": KIND_NOISE,
        "KIND_CHAIN": KIND_CHAIN,
        "KIND_USED": KIND_USED,
        "KIND_TEXT": KIND_TEXT,
        "FLAG_REPLY": int(HeaderFlag.REPLY),
        "FLAG_NEED_REPLY": int(HeaderFlag.NEED_REPLY),
    }
    yield from (f"local {name} = {value}" for name, value in numbers.items())
    yield from _table("streams", ((number, _quoted(stream.value)) for number, stream in enumerate(STREAMS)))
    yield from _table("frontend_requests", ((int(each), _quoted(each.name)) for each in FrontendRequest))
    yield from _table("backend_requests", ((int(each), _quoted(each.name)) for each in BackendRequest))
    yield from _table("features", ((bit, _quoted(feature_bit_names(1 << bit)[0])) for bit in range(64)))
    yield from _table("protocol_features", ((int(each), _quoted(each.name)) for each in ProtocolFeature))
    status = ((int(each).bit_length() - 1, _quoted(str(each.name))) for each in DeviceStatus)
    yield from _table("status", status)
    yield from _queues()
    yield from _table("bits_of", ((name, bits) for name, bits in _BITS_OF.items()))
    yield from _forms()


def _queues() -> Iterator[str]:
    # Queues are numbered one after another, those that a feature brings after the two that are always there.
    always = queue_order(0)
    yield "local queues = { " + ", ".join(_quoted(queue.value) for queue in always) + " }"
    optional = []
    for feature in BalloonFeature:
        optional += [(int(feature), queue) for queue in queue_order(1 << feature) if queue not in always]
    order = list(BalloonQueue)
    optional.sort(key=lambda pair: order.index(pair[1]))
    rows = ", ".join(f"{{ {bit}, {_quoted(queue.value)} }}" for bit, queue in optional)
    yield f"local optional_queues = {{ {rows} }}"


def _forms() -> Iterator[str]:
    used: dict[str, PayloadForm] = {U64.name: U64}
    requests: dict[str, dict[str, str]] = {"frontend_payloads": {}, "backend_payloads": {}}
    tables: tuple[tuple[str, Any], ...] = (
        ("frontend_payloads", FRONTEND_REQUEST_FORMS),
        ("backend_payloads", BACKEND_REQUEST_FORMS),
    )
    for name, forms in tables:
        for request, form in forms.items():
            for key, payload in _payloads(request.name, form):
                used[payload.name] = payload
                requests[name][key] = payload.name
    yield "local forms = {"
    for payload in used.values():
        yield f"  [{_quoted(payload.name)}] = {{ {', '.join(_steps(payload.layout))} }},"
    yield "}"
    for name, rows in requests.items():
        yield from _table(name, ((key, f"forms[{_quoted(value)}]") for key, value in rows.items()))
    yield f"local acknowledgement = forms[{_quoted(U64.name)}]"
    yield "local field_sizes = {"
    for name, size in sorted({pair for payload in used.values() for pair in _fields(payload.layout)}):
        yield f"  [{_quoted(name)}] = {size},"
    yield "}"


def _payloads(name: str, form: RequestForm) -> Iterator[tuple[str, PayloadForm]]:
    if form.payload is not None:
        yield name, form.payload
    if form.reply is not None:
        yield f"{name} reply", form.reply


def _subcons(layout: Any) -> Iterator[tuple[str, Any]]:
    for renamed in layout.subcons:
        yield renamed.name, renamed.subcon


def _steps(layout: Any) -> Iterator[str]:
    # A step is { name, size }, { name, "bytes", name of its size } or { name, "array", name of its count, steps }.
    for name, kind in _subcons(layout):
        match kind:
            case FormatField():
                yield f"{{ {_quoted(name)}, {kind.sizeof()} }}"
            case Bytes():
                yield f'{{ {_quoted(name)}, "bytes", {_quoted(_reference(kind.length))} }}'
            case Array():
                steps = ", ".join(_steps(kind.subcon))
                yield f'{{ {_quoted(name)}, "array", {_quoted(_reference(kind.count))}, {{ {steps} }} }}'
            case Struct():
                yield from _steps(kind)
            case _:
                raise AssertionError(kind)


def _reference(path: Any) -> str:
    # `this.count` as construct has it.
    return repr(path).removeprefix("this").strip("[]'.")


def _fields(layout: Any) -> Iterator[tuple[str, int]]:
    for name, kind in _subcons(layout):
        match kind:
            case FormatField():
                yield name, kind.sizeof()
            case Bytes():
                yield name, 0
            case Array():
                yield from _fields(kind.subcon)
            case Struct():
                yield from _fields(kind)
            case _:
                raise AssertionError(kind)
