"""What went wrong for people in public, as a thing to try with any device or back-end."""

from typing import Final

from scripts.check.edges.edge import Peer, peers

_MEMORY_OF_A_MONITOR: Final = (
    "What counts as a guest's memory is told to a daemon by its operator; the wire has regions alone."
)

PUBLIC: Final[tuple[Peer, ...]] = (
    *peers(
        "public/",
        (
            "kata-runtime-1657, libvirt-virtiofs",
            "The memory is a file on a disk: it is served, or refused with a reply.",
        ),
        (
            "kata-containers-1984, torokernel-428",
            "A driver has no VERSION_1 and asks for no reply: it is served, or the session ends with a reason.",
        ),
        ("firecracker-2271, cloud-hypervisor-3689", "A target is larger than the guest: no driver ever sees it."),
        (
            "cloud-hypervisor-1120, openvmm-3915, tp-qemu-2879",
            "A guest is reset with a balloon in it: the new driver starts empty, and no write follows the reset.",
        ),
        ("govmm-114", "A device is plugged again on one connection: the second SET_OWNER begins a session."),
        ("rust-vmm-vhost-29, cloud-hypervisor-7615", "GET_CONFIG has an odd window, or one beyond the end."),
        ("dpdk-vhost-vfe-138", "SET_VRING_KICK alone follows GET_VRING_BASE: the ring goes on."),
        ("dpdk-vhost-vfe-40", "SET_VRING_ENABLE with 0 comes right before GET_VRING_BASE: no buffer is lost."),
        ("dpdk-vhost-vfe-75", "Logging is switched on, off and on: pages are marked only while it is on."),
        ("rust-vmm-vhost-240", "A ring starts without SET_VRING_BASE: it is served."),
        (
            "rust-vmm-vhost-374, rust-vmm-vhost-375",
            "A buffer is there before SET_VRING_ENABLE, without a kick: it is served.",
        ),
        ("rust-vmm-vhost-180, cloud-hypervisor-7964", "A ring is started again at a base that is not its last."),
        ("rust-vmm-vhost-211", "SET_VRING_BASE names a queue that is not there: it is refused."),
        ("rust-vmm-vhost-217", "SET_LOG_BASE is answered once."),
        ("cloud-hypervisor-3503, cloud-hypervisor-2931", "The inflight area comes before the rings: it is taken."),
        (
            "cloud-hypervisor-2340, rust-vmm-vhost-224",
            "Memory is added or removed twice, or once too often: it is refused.",
        ),
        ("cloud-hypervisor-7903", "actual is larger than the memory: nothing comes of it."),
        (
            "cloud-hypervisor-8177, firecracker-2436",
            "Page numbers occur twice or are without end: the work is bounded.",
        ),
        ("spdk-2852", "Descriptors of refused messages are closed."),
        (
            "cloud-hypervisor-7850",
            "A machine is paused and goes on with a target set in between: the target is reached.",
        ),
    ),
    *peers(
        "public/",
        (
            "cloud-hypervisor-947, qemu-devel-20230224",
            "Persistent or plugged memory is not counted as the guest's own.",
        ),
        not_applicable=_MEMORY_OF_A_MONITOR,
    ),
    *peers(
        "public/",
        (
            "virtio-win-680, virtio-win-848, virtio-spec-247",
            "Statistics are held while the machine is stopped: they have the time at which they came.",
        ),
        not_applicable="The time of statistics is told by commands that each implementation has of its own.",
    ),
    *peers(
        "public/",
        ("e2b-infra-2552, firecracker-2590", "An older state is loaded before a hinting round: the round is real."),
        not_applicable="The state of a device has a form of its own in each implementation.",
    ),
    *peers(
        "public/",
        ("cloud-hypervisor-1781", "SIGHUP, SIGTERM or SIGINT comes in the middle of a report: the chain is finished."),
        ("overdrive-258", "RLIMIT_FSIZE is below the memory's size: the back-end goes on."),
        not_applicable="A device that is reached by a socket shows nothing of its process's signals and limits.",
    ),
    *peers(
        "public/",
        ("cloud-hypervisor-5369, cloud-hypervisor-5459", "Host pages larger than 4 KiB are inflated piece by piece."),
        ("spdk-1855", "Regions of huge pages have ragged ends: whole pages alone are discarded."),
        not_applicable="Huge pages have to be reserved by the administrator, and a check needs no privilege.",
    ),
    *peers(
        "public/",
        ("firecracker-6204", "Memory is mapped privately: its file is kept."),
        not_applicable="How a machine maps its own memory is not seen from the descriptor that it hands over.",
    ),
    *peers(
        "public/",
        ("firecracker-4324", "DEFLATE_ON_OOM works against the target that is set: the guest lives."),
        not_applicable="It takes a guest that runs out of memory, of which its device sees nothing.",
    ),
)

IMPLEMENTATIONS: Final[tuple[Peer, ...]] = peers(
    "",
    ("Cloud Hypervisor", "The order and the habits of this front-end."),
    ("crosvm", "The order and the habits of this front-end, and the rules of its own back-ends."),
    ("DPDK", "The rules that its vhost library checks, or once failed to check."),
    ("DPDK 218daf1664", "Descriptors that do not fit into the control buffer."),
    ("DPDK CVE-2018-1059", "A ring or a buffer that leaves its region."),
    ("DPDK CVE-2019-14818", "Descriptors of messages that take none are left open."),
    ("DPDK CVE-2020-10722", "The size and offset of a log exceed 64 bits."),
    ("DPDK CVE-2020-10723", "A queue number is compared after it was cut short."),
    ("DPDK CVE-2020-10726", "Each session leaves something open."),
    ("DPDK CVE-2021-3839", "The size of an inflight area is not checked."),
    ("libvhost-user", "The rules that this library checks, or fails to check."),
    ("QEMU", "The order and the habits of this front-end."),
    ("rust-vmm", "The rules that its vhost crates check."),
    ("User Mode Linux", "The order and the habits of this front-end."),
)
"""Implementations and their faults as cases name them where what they do is the reason for the case."""
