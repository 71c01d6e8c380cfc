"""The front-end's messages: what it sends, with which descriptors, and how it takes what comes back."""

from collections.abc import Iterator

from protocol.memory import PAGE_SIZE, MemoryRegion
from protocol.recording.records import Noise, WireMessage
from protocol.vhost_user import FRONTEND_REQUEST_FORMS, FrontendRequest, HeaderFlag, ProtocolFeature
from protocol.vhost_user_codec import Channel
from protocol.vhost_user_payloads import LogDescription, MemoryTable, VringFile, VringState
from protocol.virtio import PROTOCOL_FEATURES, has_feature
from protocol.virtio_balloon import QUEUES_MAX
from scripts.check.driver.observation import Observed
from scripts.check.driver.suite import SUITE
from scripts.check.recording.words import read_message
from scripts.check.verdict import Failed, Found, require, skip

FROM_FRONT_END = (Channel.FRONTEND_REQUESTS, Channel.FRONTEND_REPLIES)
FILES = (FrontendRequest.SET_VRING_KICK, FrontendRequest.SET_VRING_CALL, FrontendRequest.SET_VRING_ERR)


@SUITE.case("driver-messages", clauses=("V-1",))
def messages(seen: Observed) -> None:
    """All that the front-end sends is messages with version 1, and each has the form of its request."""
    if not seen.messages(Channel.FRONTEND_REQUESTS):
        skip("no message was recorded")
    for record in seen.records:
        if isinstance(record, Noise) and record.stream in FROM_FRONT_END:
            raise Failed(f"{len(record.data)} bytes are no message: {record.data[:16].hex(' ', 4)}", "V-1")
    for message, _ in seen.requests():
        read = read_message(message)
        require(not read.wrong, f"{read.name}: {read.wrong}: {message.payload[:16].hex(' ', 4)}", "V-1")


def negotiated(seen: Observed) -> Iterator[tuple[WireMessage, FrontendRequest, int]]:
    """Yield each message with its request, and the protocol features that were set before it."""
    features = 0
    for message, payload in seen.requests():
        yield message, FrontendRequest(message.request), features
        if message.request == FrontendRequest.SET_PROTOCOL_FEATURES and isinstance(payload, int):
            features = payload


@SUITE.case("driver-messages-negotiated", clauses=("V-54",))
def messages_negotiated(seen: Observed) -> None:
    """A message that belongs to a protocol feature comes only where that was negotiated, and so does NEED_REPLY."""
    if not seen.requests():
        skip("no message was recorded")
    for message, request, features in negotiated(seen):
        needs = FRONTEND_REQUEST_FORMS[request].needs
        if needs is not None and not has_feature(features, needs):
            raise Failed(f"{request.name} came, and {needs.name} was not negotiated", "V-54")
        if message.flags & HeaderFlag.NEED_REPLY and not has_feature(features, ProtocolFeature.REPLY_ACK):
            if request is FrontendRequest.SET_PROTOCOL_FEATURES:
                raise Found("SET_PROTOCOL_FEATURES, which negotiates REPLY_ACK, has NEED_REPLY itself", "V-54")
            raise Failed(f"{request.name} has NEED_REPLY, and REPLY_ACK was not negotiated", "V-54")


@SUITE.case("driver-memory-table", clauses=("V-55",))
def memory_table(seen: Observed) -> None:
    """SET_MEM_TABLE has a descriptor for each region, in the order of the regions: each region lies in its file."""
    tables = seen.requests(FrontendRequest.SET_MEM_TABLE)
    if not tables:
        skip("the front-end sent no SET_MEM_TABLE")
    for message, table in tables:
        regions = table.regions if isinstance(table, MemoryTable) else ()
        files = message.files
        require(len(files) == len(regions), f"{len(regions)} regions came with {len(files)} descriptors", "V-55")
        for region, file in zip(regions, files, strict=True):
            _require_inside(region, file.size)


def _require_inside(region: MemoryRegion, size: int) -> None:
    end = region.mmap_offset + region.size
    if 0 <= size < end:
        raise Failed(f"the region at {region.guest_address:#x} ends at {end:#x} of a file of {size:#x} bytes", "V-55")


@SUITE.case("driver-memory-slots", clauses=("V-56", "V-57"))
def memory_slots(seen: Observed) -> None:
    """ADD_MEM_REG has one descriptor, and REM_MEM_REG has none."""
    changes = seen.requests(FrontendRequest.ADD_MEM_REG, FrontendRequest.REM_MEM_REG)
    if not changes:
        skip("the front-end neither added nor removed a region")
    for message, _ in changes:
        count = len(message.files)
        if message.request == FrontendRequest.ADD_MEM_REG:
            require(count == 1, f"ADD_MEM_REG came with {count} descriptors", "V-56")
        elif count:
            raise Found(f"REM_MEM_REG came with {count} descriptors", "V-57")


@SUITE.case("driver-descriptors-told", clauses=("V-58",))
def descriptors_told(seen: Observed) -> None:
    """Bit 8 of a kick, call or error message is set if no descriptor comes, and only then."""
    files = seen.requests(*FILES)
    if not files:
        skip("the front-end set no kick, call or error descriptor")
    for message, file in files:
        if not isinstance(file, VringFile):
            continue
        name = FrontendRequest(message.request).name
        if file.has_file != bool(message.files):
            said = "clear" if file.has_file else "set"
            raise Failed(f"{name} of queue {file.index} has bit 8 {said} and {len(message.files)} descriptors", "V-58")


@SUITE.case("driver-enable-negotiated", clauses=("V-59",))
def enable_negotiated(seen: Observed) -> None:
    """SET_VRING_ENABLE comes only where bit 30 was accepted."""
    features: int | None = None
    enabled = False
    for message, payload in seen.requests(FrontendRequest.SET_FEATURES, FrontendRequest.SET_VRING_ENABLE):
        if message.request == FrontendRequest.SET_FEATURES and isinstance(payload, int):
            features = payload
            continue
        enabled = True
        if features is not None and not features & PROTOCOL_FEATURES:
            raise Found(f"SET_VRING_ENABLE came after features without bit 30: {features:#x}", "V-59")
    if not enabled:
        skip("the front-end sent no SET_VRING_ENABLE")


@SUITE.case("driver-in-band-kick", clauses=("V-60",))
def in_band_kick(seen: Observed) -> None:
    """The number in an in-band kick is 0."""
    kicks = seen.requests(FrontendRequest.VRING_KICK)
    if not kicks:
        skip("the front-end kicks by descriptors (--in-band)")
    for _, state in kicks:
        if isinstance(state, VringState):
            require(state.num == 0, f"VRING_KICK of queue {state.index} has the number {state.num}", "V-60")


@SUITE.case("driver-queue-count", clauses=("V-61",))
def queue_count(seen: Observed) -> None:
    """No more queues are set up than GET_QUEUE_NUM has told."""
    sizes = seen.requests(FrontendRequest.SET_VRING_NUM)
    if not sizes:
        skip("the front-end set up no queue")
    most = max(state.index for _, state in sizes if isinstance(state, VringState)) + 1
    if most > QUEUES_MAX:
        raise Found(f"{most} queues were set up, and GET_QUEUE_NUM tells {QUEUES_MAX}", "V-61")


@SUITE.case("driver-log", clauses=("V-62",))
def log(seen: Observed) -> None:
    """The log of SET_LOG_BASE covers all addresses of the guest."""
    end = 0
    logs = 0
    requests = (FrontendRequest.SET_MEM_TABLE, FrontendRequest.ADD_MEM_REG, FrontendRequest.SET_LOG_BASE)
    for _, payload in seen.requests(*requests):
        match payload:
            case MemoryTable(regions=regions):
                end = max((region.guest_end for region in regions), default=0)
            case MemoryRegion():
                end = max(end, payload.guest_end)
            case LogDescription(size=size):
                logs += 1
                needed = -(-end // PAGE_SIZE // 8)
                if size < needed:
                    raise Found(f"the log has {size} bytes, and memory up to {end:#x} needs {needed}", "V-62")
    if not logs:
        skip("the front-end did not migrate its guest")


@SUITE.case("driver-answers", clauses=("V-63",))
def answers(seen: Observed) -> None:
    """A request of the back-end that needs a reply is answered, once, with its number and 8 bytes."""
    asked = [one for one in seen.messages(Channel.BACKEND_REQUESTS) if one.flags & HeaderFlag.NEED_REPLY]
    if not asked:
        skip("nothing was asked on the back-end's channel, or REPLY_ACK was not negotiated")
    replies = seen.messages(Channel.FRONTEND_REPLIES)
    if len(replies) < len(asked):
        raise Failed(f"{len(asked)} requests needed a reply, and {len(replies)} came", "V-63")
    for request, reply in zip(asked, replies, strict=False):
        if reply.request != request.request or len(reply.payload) != 8:
            raise Failed(
                f"request {request.request} was answered with request {reply.request} and {len(reply.payload)} bytes",
                "V-63",
            )


@SUITE.case("driver-hangs-up", clauses=("V-52",))
def hangs_up(seen: Observed) -> None:
    """A front-end that got a wrong reply hangs up: the reply to GET_CONFIG names GET_QUEUE_NUM."""
    if "hung_up" not in seen.marks:
        skip("the front-end did not ask for the configuration after a change of it")
    require(
        seen.marks["hung_up"], "the reply to GET_CONFIG named GET_QUEUE_NUM, and the front-end went on for 3 s", "V-52"
    )
