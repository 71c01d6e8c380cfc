"""Edge cases of the balloon, and of the program that serves it."""

from typing import Final

from scripts.check.edges.edge import Edge, edges

BALLOON: Final[tuple[Edge, ...]] = (
    *edges(
        (126, "A report is acknowledged only when its discards are done."),
        (127, "With PAGE_POISON a report is discarded if the poison is 0, and acknowledged untouched if it is not."),
        (128, "The poison is written while the device runs: what it decides does not change."),
        (129, "A discard fails: the buffer comes back, and the device goes on."),
        (131, "A page is used again right after the acknowledgement: no late discard takes it."),
        (132, "A second statistics buffer comes while one is held: the first comes back, without a storm."),
        (133, "A statistics buffer has an odd length, is huge, or has unknown tags: what is known is taken."),
        (134, "An inflated page number is beyond the memory: it is skipped."),
        (135, "A hint has an old command id or comes after DONE: nothing is discarded."),
        (
            136,
            "The configuration space is read in parts of up to 256 bytes: the reply has that size, zeros last.",
        ),
        (137, "The whole configuration space is written with flags 0: only what is the driver's changes."),
        (138, "The configuration space is written with flags 1 in a normal run: the same holds."),
        (139, "A front-end answers a configuration change with an error: the device goes on."),
        (140, "A configuration change asks for a reply while the front-end waits for one itself: no deadlock."),
        (
            141,
            "SET_BACKEND_REQ_FD replaces a channel, or the front-end closes it: the old one is closed, nothing ends.",
        ),
        (142, "SET_LOG_BASE has a log beyond its file: it is refused, with one reply."),
        (143, "Writes to a used ring that is logged are in the log."),
    ),
    *edges(
        (130, "The operator has switched discarding off: all reports come back and nothing is discarded."),
        not_applicable="The switch belongs to one program, and not to the protocol of a device.",
    ),
)

PROGRAM: Final[tuple[Edge, ...]] = (
    *edges(
        (147, "A second front-end connects while one lives: it is refused or waits, and the first goes on."),
        (148, "Front-ends come and go many times: descriptors, mappings and memory stay as they were."),
        (149, "GET_INFLIGHT_FD has the 24 bytes of the C structure and is served; a huge queue size is bounded."),
        (151, "A report of 32 ranges of 4 MiB comes back soon, with other guests busy too."),
        (152, "SET_PROTOCOL_FEATURES and SET_FEATURES come without a GET before: they are accepted."),
        (153, "A region begins in the middle of a 4 MiB block: exactly the reported bytes are discarded."),
        (154, "A reported range is empty already: it comes back and nothing else changes."),
        (155, "PAGE_POISON is offered to a front-end that drops bit 30 in its second SET_FEATURES: it is served."),
    ),
    *edges(
        (144, "SIGTERM comes under load: the program ends soon, with the chain in hand finished or put back."),
        (145, "The option --print-capabilities prints JSON with the type balloon and ends with 0."),
        (146, "The option --socket-path is given with --fd: the program ends with an error."),
        not_applicable="A device that is reached by a socket shows nothing of its program's options and signals.",
    ),
    *edges(
        (150, "A worker is killed with a chain in hand: its successor finishes it, unnoticed by the guest."),
        not_applicable="How a program divides itself into processes is not seen from its socket.",
    ),
)
