"""Features, protocol features, ownership (vhost-user, "Feature bits", "Protocol features")."""

from typing import Final

from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_payloads import DeviceConfig, DeviceStateTransfer, VringState
from protocol.virtio import LOG_ALL, PROTOCOL_FEATURES, DeviceStatus, FeatureBit, feature_mask
from scripts.check.generic.judging import Bad, refuses
from scripts.check.generic.suite import SUITE
from scripts.check.generic.target import Kind, Target
from scripts.check.verdict import Failed, Found, HungUpError, require, skip

_IN_BAND: Final = feature_mask(ProtocolFeature.INBAND_NOTIFICATIONS)
_CONFIG_MAX: Final = 256


def _need_bit_30(target: Target) -> None:
    if not target.facts.features & PROTOCOL_FEATURES:
        skip("the back-end does not offer VHOST_USER_F_PROTOCOL_FEATURES")


def _not_offered(features: int) -> tuple[int, int]:
    # The highest and the lowest bit that are not offered.
    missing = ~features & feature_mask(*range(64))
    if not missing:
        skip("the back-end offers each of the 64 bits")
    return missing.bit_length() - 1, (missing & -missing).bit_length() - 1


@SUITE.case("protocol-features-first", clauses=("V-14",), edges=(19,))
def protocol_features_first(target: Target) -> None:
    """GET_ and SET_PROTOCOL_FEATURES are served before SET_FEATURES."""
    _need_bit_30(target)
    target.connection.number(FrontendRequest.GET_PROTOCOL_FEATURES)
    target.connection.request(FrontendRequest.SET_PROTOCOL_FEATURES, 0)
    target.check_alive()


@SUITE.case("nothing-asked-before", clauses=("V-14",), edges=(152,), peers=("Cloud Hypervisor", "rust-vmm"))
def nothing_asked_before(target: Target) -> None:
    """A front-end that reconnects sets what it knows from before, without asking for it again."""
    target.connection.close()
    target.connection = target.backend.connected()
    target.negotiated()
    ring = target.ring()
    target.start(ring)
    target.stop(ring)


@SUITE.case("reply-ack-of-its-own-message", clauses=("V-10",), edges=(21,))
def reply_ack_of_its_own_message(target: Target) -> None:
    """SET_PROTOCOL_FEATURES with NEED_REPLY that negotiates REPLY_ACK is acknowledged: User Mode Linux waits for it."""
    target.need(ProtocolFeature.REPLY_ACK)
    connection = target.connection
    connection.request(FrontendRequest.SET_OWNER)
    target.protocol_features = feature_mask(ProtocolFeature.REPLY_ACK)
    answer = target.attempt(FrontendRequest.SET_PROTOCOL_FEATURES, target.protocol_features)
    if answer.kind is not Kind.ACCEPTED:
        raise Found(f"the message that negotiates REPLY_ACK {answer.kind.value}: User Mode Linux cannot attach")


@SUITE.case("protocol-features-not-offered", clauses=("V-15",), edges=(22,))
def protocol_features_not_offered(target: Target) -> None:
    """Protocol features that were not offered are refused, and those in force stay."""
    _need_bit_30(target)
    bad = [
        Bad(f"SET_PROTOCOL_FEATURES with bit {bit}", FrontendRequest.SET_PROTOCOL_FEATURES, kept | 1 << bit)
        for bit in _not_offered(target.facts.protocol_features)
        for kept in (target.facts.protocol_features & feature_mask(ProtocolFeature.REPLY_ACK),)
    ]
    refuses(target, bad, target.negotiate)


@SUITE.case("in-band-alone", clauses=("V-18",), edges=(23,))
def in_band_alone(target: Target) -> None:
    """INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK ends the connection, or is refused."""
    target.need(ProtocolFeature.INBAND_NOTIFICATIONS, ProtocolFeature.REPLY_ACK)
    target.negotiate()
    for mask in (_IN_BAND, _IN_BAND | feature_mask(ProtocolFeature.REPLY_ACK)):
        answer = target.attempt(FrontendRequest.SET_PROTOCOL_FEATURES, mask)
        if answer.kind in (Kind.ACCEPTED, Kind.SILENT):
            raise Found(f"SET_PROTOCOL_FEATURES {mask:#x}, which the text calls an error, leaves the connection open")
        target.reconnect()
        target.negotiate()


@SUITE.case("features-not-offered", clauses=("V-13",), edges=(24,), peers=("rust-vmm", "crosvm"))
def features_not_offered(target: Target) -> None:
    """SET_FEATURES with a bit that was not offered is refused."""
    bits = _not_offered(target.facts.features)
    target.negotiate()
    bad = [
        Bad(
            f"SET_FEATURES with bit {bit}, not offered",
            FrontendRequest.SET_FEATURES,
            target.features | 1 << bit,
        )
        for bit in bits
    ]
    refuses(target, bad, target.negotiate)


@SUITE.case("without-version-1", edges=(25,), peers=("public/kata-containers-1984", "libvhost-user"))
def without_version_1(target: Target) -> None:
    """A driver without VERSION_1 is served as a legacy driver, or refused at once."""
    target.negotiate()
    if not target.facts.offers(FeatureBit.VERSION_1):
        skip("the back-end does not offer VERSION_1")
    legacy = target.features & ~feature_mask(FeatureBit.VERSION_1)
    refuses(target, [Bad("SET_FEATURES without VERSION_1", FrontendRequest.SET_FEATURES, legacy)], list, done=None)


@SUITE.case("second-features-without-bit-30", clauses=("V-38",), edges=(26,))
def second_features_without_bit_30(target: Target) -> None:
    """A second SET_FEATURES without bit 30, as User Mode Linux sends, leaves the protocol features in force."""
    _need_bit_30(target)
    target.negotiated()
    target.do(FrontendRequest.SET_FEATURES, target.features & ~PROTOCOL_FEATURES)
    ring = target.ring()
    target.set_up(ring)  # with NEED_REPLY, where REPLY_ACK was negotiated
    target.check_alive()


@SUITE.case("features-of-a-running-ring", clauses=("V-17",), edges=(27, 28), peers=("rust-vmm", "QEMU"))
def features_of_a_running_ring(target: Target) -> None:
    """SET_FEATURES while a ring runs changes neither its index nor whether it runs."""
    target.negotiated()
    ring = target.ring()
    ring.start_at(5)
    target.start(ring, 5)
    log = target.facts.features & LOG_ALL
    for features in (target.features | log, target.features, target.features | log, target.features):
        target.do(FrontendRequest.SET_FEATURES, features)
    base = target.stop(ring)
    require(base == 5, f"after SET_FEATURES a ring at index 5 is at {base}")


@SUITE.case("owner-again", clauses=("V-20",), edges=(29,), peers=("public/govmm-114", "rust-vmm", "QEMU"))
def owner_again(target: Target) -> None:
    """SET_OWNER that comes late or again is tolerated."""
    target.negotiate()
    answer = target.attempt(FrontendRequest.SET_OWNER)
    if answer.kind not in (Kind.ACCEPTED, Kind.UNHEARD):
        raise Found(f"a second SET_OWNER was {answer.kind.value}")
    target.set_memory()
    ring = target.ring()
    target.start(ring)
    target.stop(ring)


@SUITE.case("owner-missing", clauses=("V-20",), edges=(29,))
def owner_missing(target: Target) -> None:
    """A session without SET_OWNER is served."""
    wanted = target.facts.protocol_features & feature_mask(ProtocolFeature.REPLY_ACK)
    try:
        if wanted:
            target.connection.request(FrontendRequest.SET_PROTOCOL_FEATURES, wanted)
            target.protocol_features = wanted
        target.do(FrontendRequest.SET_FEATURES, target.features)
        target.set_memory()
    except (Failed, HungUpError) as error:
        raise Found(f"without SET_OWNER the session is not served: {error}") from error


@SUITE.case("reset-owner", clauses=("V-20",), edges=(30,))
def reset_owner(target: Target) -> None:
    """RESET_OWNER is ignored or disables the rings; memory table and features stay."""
    target.negotiated()
    answer = target.attempt(FrontendRequest.RESET_OWNER)
    if answer.kind in (Kind.HUNG_UP, Kind.SILENT):
        raise Found(f"RESET_OWNER {answer.kind.value}, although back-ends are to ignore it or to disable their rings")
    ring = target.ring()
    try:
        target.start(ring)
        target.stop(ring)
    except Failed as error:
        raise Found(f"after RESET_OWNER a ring is not served: {error.reason}") from error


@SUITE.case("number-of-queues", clauses=("V-19",), edges=(31,))
def number_of_queues(target: Target) -> None:
    """GET_QUEUE_NUM tells how many queues there are, and the last of them can be set up."""
    target.need(ProtocolFeature.MQ)
    target.negotiated()
    queues = target.connection.number(FrontendRequest.GET_QUEUE_NUM)
    require(queues > 0, "GET_QUEUE_NUM was answered with 0")
    target.do(FrontendRequest.SET_VRING_NUM, VringState(queues - 1, 64))
    again = target.connection.number(FrontendRequest.GET_QUEUE_NUM)
    require(again == queues, f"GET_QUEUE_NUM was answered with {queues} and then with {again}")


@SUITE.case("features-stay", clauses=("V-16",), edges=(32,), peers=("User Mode Linux", "QEMU"))
def features_stay(target: Target) -> None:
    """GET_FEATURES, which front-ends use as a barrier, has the same answer at any time."""
    target.check_alive()
    target.negotiate()
    target.check_alive()
    target.set_memory()
    ring = target.ring()
    target.start(ring)
    target.check_alive()
    target.stop(ring)
    target.check_alive()


@SUITE.case("status", edges=(35, 36))
def status(target: Target) -> None:
    """GET_STATUS tells the status that was set, and 0 resets it."""
    target.need(ProtocolFeature.STATUS)
    target.negotiate(more=feature_mask(ProtocolFeature.STATUS))
    for value in (DeviceStatus.ACKNOWLEDGE, DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER, 0):
        target.do(FrontendRequest.SET_STATUS, int(value))
        seen = target.connection.number(FrontendRequest.GET_STATUS)
        require(seen == value, f"GET_STATUS was answered with {seen:#x} after SET_STATUS {int(value):#x}")


@SUITE.case("status-without-driver-ok", edges=(35,), peers=("QEMU",))
def status_without_driver_ok(target: Target) -> None:
    """A ring starts without DRIVER_OK, which QEMU's generic device never sends."""
    target.need(ProtocolFeature.STATUS)
    target.negotiated(more=feature_mask(ProtocolFeature.STATUS))
    ring = target.ring()
    ring.start_at(3)
    target.start(ring, 3)
    require(target.stop(ring) == 3, "the ring was not at the base that it was given")


@SUITE.case("device-state-errors", clauses=("V-50",))
def device_state_errors(target: Target) -> None:
    """SET_DEVICE_STATE_FD with a direction or a phase that does not exist is answered with an error."""
    target.need(ProtocolFeature.DEVICE_STATE)
    pipe = target.keep_pipe()
    bad = [
        Bad(f"SET_DEVICE_STATE_FD {way}, {phase}", FrontendRequest.SET_DEVICE_STATE_FD, payload, (pipe.fd,))
        for way, phase in ((7, 0), (0, 7))
        for payload in (DeviceStateTransfer(way, phase),)
    ]
    refuses(target, bad, lambda: target.negotiate(more=feature_mask(ProtocolFeature.DEVICE_STATE)))


@SUITE.case(
    "configuration-space-windows", clauses=("V-44",), peers=("public/rust-vmm-vhost-29", "public/cloud-hypervisor-7615")
)
def configuration_space_windows(target: Target) -> None:
    """GET_CONFIG of any window is answered with as many bytes as were asked for, or with none."""
    target.need(ProtocolFeature.CONFIG)
    target.negotiate()
    hung_up = []
    for offset, size in ((0, 4), (0, 8), (4, 4), (1, 3), (0, _CONFIG_MAX), (_CONFIG_MAX - 4, 4), (_CONFIG_MAX, 4)):
        request = DeviceConfig(offset=offset, flags=0, data=bytes(size))
        try:
            answer = target.connection.query(FrontendRequest.GET_CONFIG, request)
        except HungUpError:
            hung_up.append(f"{size} bytes at {offset}")
            target.reconnect()
            target.negotiate()
            continue
        seen = len(answer.data) if isinstance(answer, DeviceConfig) else 0
        require(seen in (0, size), f"GET_CONFIG of {size} bytes at {offset} was answered with {seen}")
    if hung_up:
        raise Found(f"GET_CONFIG of {', '.join(hung_up)} ended the connection instead of being answered with no bytes")
