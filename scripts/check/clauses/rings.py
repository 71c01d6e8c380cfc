"""What binds both sides of a virtqueue: virtio 1.2, 2.7 (split) and 2.8 (packed)."""

from typing import Final

from scripts.check.clauses.clause import BOTH, DEVICE, DRIVER, Clause, Level, section

_M, _S = Level.MUST, Level.SHOULD

RINGS: Final[tuple[Clause, ...]] = (
    *section(
        "virtio 1.2, 2.7",
        (
            "S-1",
            BOTH,
            _M,
            "Table, available and used ring are aligned to 16, 2 and 4; the size is a power of 2, at most 32768.",
        ),
    ),
    *section(
        "virtio 1.2, 2.7.4",
        ("S-2", DEVICE, _M, "The device does not assume how a request is divided into descriptors."),
        ("S-3", DRIVER, _M, "Writable buffers of a chain follow the readable ones."),
    ),
    *section(
        "virtio 1.2, 2.7.5",
        ("S-4", DEVICE, _M, "The device writes no readable buffer and no descriptor."),
        ("S-5", DRIVER, _M, "A chain has at most 2^32 bytes in sum, and so no loop."),
        ("S-6", DRIVER, _M, "INDIRECT is not used without INDIRECT_DESC."),
        ("S-7", DRIVER, _M, "A table does not name another table."),
        ("S-8", DRIVER, _M, "A chain is not longer than the queue."),
        ("S-9", DRIVER, _M, "INDIRECT and NEXT are not set together."),
        ("S-10", DEVICE, _M, "WRITE on the descriptor that names an indirect table is ignored."),
        ("S-11", DEVICE, _M, "A chain of direct descriptors followed by an indirect one is served."),
        ("S-12", DRIVER, _M, "With IN_ORDER descriptors follow one another in the table."),
    ),
    *section(
        "virtio 1.2, 2.7.6 and 2.7.7",
        ("S-13", DRIVER, _M, "The available index is never decremented."),
        ("S-14", DRIVER, _M, "avail.flags is 0 or 1 without EVENT_IDX and 0 with it; spurious interrupts are handled."),
        (
            "S-15",
            DEVICE,
            _M,
            "Without EVENT_IDX an interrupt follows each used buffer if avail.flags is 0, and none if it is 1.",
        ),
        ("S-16", DEVICE, _M, "With EVENT_IDX an interrupt comes when the used index passes used_event, and only then."),
    ),
    *section(
        "virtio 1.2, 2.7.8",
        (
            "S-17",
            DEVICE,
            _M,
            "A chain comes back once, its used length set before the used index; so many bytes at least were written.",
        ),
        ("S-18", DRIVER, _M, "The driver trusts no byte of a buffer beyond the used length."),
    ),
    *section(
        "virtio 1.2, 2.7.10 and 2.7.13",
        ("S-19", BOTH, _M, "The driver notifies exactly when the device asks for it, and an idle device has asked."),
        ("S-20", DEVICE, _M, "used.flags is 0 or 1 without EVENT_IDX, and 0 with it."),
        ("S-21", DEVICE, _M, "Spurious kicks are handled."),
        (
            "S-22",
            BOTH,
            _M,
            "An index is stored after what it publishes, and before the other side's wish for notice is read.",
        ),
    ),
    *section(
        "virtio 1.2, 2.8",
        ("P-1", BOTH, _M, "The ring is aligned to 16 and its event areas to 4; any size up to 32768 will do."),
        (
            "P-2",
            DEVICE,
            _M,
            "Descriptors are started in ring order, and used ones are written in the order of completion.",
        ),
        ("P-3", DEVICE, _M, "The device writes no readable buffer."),
        ("P-4", DEVICE, _M, "A descriptor is used only when its AVAIL bit was seen to change."),
        ("P-5", DEVICE, _M, "A descriptor is not changed after its USED bit was changed."),
        (
            "P-6",
            DRIVER,
            _M,
            "A descriptor is changed only when its USED bit was changed, and not after its AVAIL bit was.",
        ),
        ("P-7", DRIVER, _M, "With NOTIFICATION_DATA a kick names the next descriptor that is not available."),
        ("P-8", DRIVER, _M, "A list is not longer than the queue or the device allows."),
        ("P-9", DRIVER, _M, "Writable buffers of a list follow the readable ones."),
        ("P-10", DRIVER, _M, "There is room for a whole list before it is begun."),
        ("P-11", DRIVER, _M, "The first descriptor of a list is made available after the others."),
        ("P-12", DEVICE, _M, "The descriptors of a list are used in the order in which they were made available."),
        ("P-13", DRIVER, _M, "INDIRECT needs INDIRECT_DESC, stands in no list, and its table has no flag but WRITE."),
        (
            "P-14",
            BOTH,
            _M,
            "What a flags field publishes is stored before it; an interrupt comes when it is asked for.",
        ),
        (
            "P-15",
            BOTH,
            _M,
            "Flags are stored before the other side's event area is read; an idle device has asked for a kick.",
        ),
        (
            "P-16",
            DEVICE,
            _M,
            "One used descriptor a list, with its id; its length counts where WRITE is set, and was written.",
        ),
    ),
)
