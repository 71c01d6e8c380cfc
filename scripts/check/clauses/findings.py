"""What follows from the text for memory, and what the text leaves open although drivers depend on it."""

from typing import Final

from scripts.check.clauses.clause import BACK_END, BOTH, DEVICE, DRIVER, Clause, Level, section

_M, _U = Level.MUST, Level.UNSTATED

FINDINGS: Final[tuple[Clause, ...]] = (
    *section(
        "follows from virtio 1.2, 2.7.5, 5.5.6.2 and 5.5.6.7",
        ("M-safe", DEVICE, _M, "The device changes no byte of memory that no buffer gave it; a page in use stays."),
        ("M-alive", DEVICE, _M, "What a driver does wrong ends no process and costs no other machine."),
    ),
    *section(
        "not stated",
        (
            "F-regions",
            BACK_END,
            _U,
            "Whether regions that can be mapped and make no sense are refused: empty, overlapping, beyond their file, "
            "or with guest or user addresses that wrap.",
        ),
        ("F-discard", DEVICE, _U, "Whether pages that were given away are discarded at all."),
        ("F-used-length", DEVICE, _U, "The used length of a report, in whose buffers nothing is written."),
        ("F-direction", BOTH, _U, "Whether a report may be in readable buffers."),
        ("F-alignment", BOTH, _U, "What becomes of a range that is no whole number of pages."),
        ("F-range", BOTH, _U, "What becomes of a report with a range that is not memory."),
        ("F-ring", DEVICE, _U, "What becomes of a range that covers the ring itself."),
        ("F-duplicates", DEVICE, _U, "What becomes of a range that is reported twice."),
        ("F-empty", DEVICE, _U, "What becomes of a buffer of no bytes."),
        ("F-inflate-twice", DEVICE, _U, "What becomes of a page that is inflated twice."),
        ("F-indirect", DEVICE, _U, "How long an indirect table may be."),
        ("F-queue-numbers", BOTH, _U, "Which number a queue has where another does not exist."),
        ("F-uninvited", DEVICE, _U, "What becomes of a queue whose feature was not accepted."),
        ("F-statistics-tags", BOTH, _U, "Which statistics come, in which order, and what those from tag 10 on mean."),
        ("F-statistics-storm", DEVICE, _U, "How often the device asks for statistics."),
        ("F-actual", DEVICE, _U, "Whether a new driver finds what the last one wrote into actual."),
        ("F-features", DRIVER, _U, "Which offered features the driver leaves out."),
        ("F-report-time", DEVICE, _U, "How long a large report takes, for which its pages are missing to the guest."),
        ("F-report-pace", DRIVER, _U, "How many ranges a report has, of what size, and how often reports come."),
        (
            "F-draft",
            DEVICE,
            _U,
            "Of bits 6 and 7, a draft's: the pages that the device says to hold zeros hold them.",
        ),
        ("F-config-write", DEVICE, _U, "What becomes of a driver's write to a field that is the device's."),
        ("F-config-size", DEVICE, _U, "How many bytes the configuration space has."),
        ("F-config-flags", DEVICE, _U, "What the flags of SET_CONFIG mean to the back-end."),
    ),
)
