"""What virtio-villain, a hostile guest for virtual machine monitors, does to balloons."""

from typing import Final

from scripts.check.edges.edge import Peer, peers

VILLAIN: Final[tuple[Peer, ...]] = (
    *peers(
        "villain/",
        ("L0001, L0040", "A page is inflated, and two pages are."),
        ("L0002, L0039", "A page is deflated."),
        ("L0003, L0018", "An inflate has no numbers, or a buffer of no bytes."),
        ("L0004", "An inflated number is beyond the memory."),
        ("L0005", "The length of an inflate is no multiple of 4."),
        ("L0006", "A page is inflated and deflated."),
        ("L0007", "The number 0 is inflated."),
        ("L0008", "The largest number is inflated."),
        ("L0009", "A number occurs twice in an inflate."),
        ("L0010, L0028", "An inflate has a huge length, or reaches beyond the memory."),
        ("L0011", "The buffer of an inflate is outside of the memory."),
        ("L0012", "The buffer of an inflate is marked as device-writable."),
        ("L0013", "An inflate is shorter than one number."),
        ("L0014", "The whole ring is full of inflates."),
        ("L0015", "The numbers of an inflate lie in a chain of buffers."),
        ("L0016", "A page is inflated a second time."),
        ("L0017", "A page is deflated that is not in the balloon."),
        ("L0019, L0041, L0043", "Statistics are given, one or all."),
        ("L0020", "The length of the statistics is no multiple of an entry."),
        ("L0021", "An inflated page holds the descriptor table."),
        ("L0022", "The reporting queue is used without PAGE_REPORTING."),
        ("L0023", "A page is reported."),
        ("L0024", "A report has a buffer of no bytes."),
        ("L0025", "A report is huge."),
        ("L0026", "A page is reported while it is in the balloon."),
        ("L0029, L0046", "A report has a length of no whole pages."),
        ("L0030", "Statistics are divided over two buffers."),
        ("L0031", "The numbers of an inflate cross the border of a page."),
        ("L0032", "Statistics have an unknown tag."),
        ("L0035", "A page is hinted under the device's command id."),
        ("L0036, L0045", "The poison can be read and is kept."),
        ("L0037", "num_pages can be read."),
        ("L0038", "actual can be written after an inflate."),
        ("L0042", "Statistics are given in another order."),
        ("L0044", "A round of hints ends with STOP."),
        ("L0200", "The balloon gets another size while a driver runs."),
    ),
    *peers(
        "villain/",
        ("L0027", "The configuration space is read through a window of PCI's."),
        ("L0033", "An inflated number is that of a PCI device's registers."),
        not_applicable="It is about the PCI transport, and the devices here are reached by vhost-user or virtio-mmio.",
    ),
    *peers(
        "villain/",
        ("L0034", "DEFLATE_ON_OOM is negotiated and the guest takes pages back."),
        not_applicable="A device sees a deflate, and not the reason for which the guest has made it.",
    ),
    *peers(
        "villain/",
        ("L0201", "A snapshot is taken during an inflate."),
        not_applicable="It saves a whole virtual machine, which takes its monitor.",
    ),
)
