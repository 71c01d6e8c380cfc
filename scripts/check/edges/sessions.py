"""Edge cases of messages, of negotiation and of the memory table."""

from typing import Final

from scripts.check.edges.edge import Edge, edges

FRAMING: Final[tuple[Edge, ...]] = edges(
    (1, "A header comes in several pieces: the message is read once it is complete."),
    (2, "Two messages come at once: both are handled, in their order."),
    (3, "A message without descriptors is followed at once by one with them: they belong to the second."),
    (4, "The version in the flags is not 1: the message is refused and its descriptors are closed."),
    (5, "A request has the REPLY flag: it is refused."),
    (6, "Reserved flags are set in a header: they are refused or ignored, and never repeated in a reply."),
    (7, "The size in a header is larger than any message: the session ends, and no memory is allocated for it."),
    (8, "A payload is too short for its request: it is refused, and no part of it is used."),
    (9, "A payload is too long for a number or a ring state: it is refused; a memory table may be longer."),
    (10, "The connection ends in the middle of a payload: the device stops cleanly."),
    (11, "Descriptors come with a message that has none: they are closed and the request fails."),
    (12, "More descriptors come than fit into the control buffer: those received are closed, the message is refused."),
    (13, "As many descriptors as the kernel passes come with SET_VRING_KICK: none of them is left open."),
    (14, "Received descriptors are closed on exec."),
    (15, "An unknown request asks for a reply: it is answered with an error and the session goes on."),
    (16, "An unknown request asks for no reply: it is skipped and the next message is understood."),
    (17, "A reply has the flags 0x5 exactly and the number of its request."),
    (18, "A front-end stops in the middle of a header: other front-ends are served as before."),
)

NEGOTIATION: Final[tuple[Edge, ...]] = (
    *edges(
        (19, "Protocol features are asked for and set before SET_FEATURES: both work."),
        (21, "SET_PROTOCOL_FEATURES negotiates REPLY_ACK and asks for a reply itself: it is answered with 0."),
        (22, "SET_PROTOCOL_FEATURES has bits that were not offered: it is refused and the old set is kept."),
        (23, "INBAND_NOTIFICATIONS is set without BACKEND_REQ or REPLY_ACK: the connection is closed."),
        (24, "SET_FEATURES has bits that were not offered: it is refused."),
        (25, "SET_FEATURES lacks VERSION_1: it is refused, or the driver is served as a legacy one."),
        (26, "A second SET_FEATURES lacks bit 30: all rings are enabled and the protocol features stay in force."),
        (27, "SET_FEATURES with bit 30 comes while rings are enabled: they stay enabled."),
        (28, "SET_FEATURES adds LOG_ALL on a running ring: its indices stay as they are."),
        (29, "SET_OWNER is missing, late or repeated: the session goes on."),
        (30, "RESET_OWNER comes: it is ignored or disables the rings; memory table and features are kept."),
        (31, "GET_QUEUE_NUM tells the number of queues of everything that is offered."),
        (32, "GET_FEATURES is asked at any time: the value stays the same."),
        (33, "PAGE_REPORTING is offered and not accepted: a ring at its number has no effect."),
        (35, "STATUS is negotiated and DRIVER_OK never comes: the device runs all the same."),
        (36, "SET_STATUS sets 0: the device is reset."),
    ),
    *edges(
        (20, "GET_PROTOCOL_FEATURES comes although bit 30 was not offered: it is answered with 0."),
        not_applicable="The text forbids the request there, and a target without bit 30 can hardly be judged at all.",
    ),
    *edges(
        (34, "A guest that poisons its free pages meets a device without PAGE_POISON: it takes no PAGE_REPORTING."),
        not_applicable="How a guest's kernel treats free pages cannot be set or seen from its device.",
    ),
)

MEMORY: Final[tuple[Edge, ...]] = (
    *edges(
        (37, "A memory table has another number of descriptors than of regions: it is refused, the old one is kept."),
        (38, "A memory table is empty: it stands for no memory or is refused."),
        (39, "A memory table has more than eight regions: it is refused."),
        (40, "Address or offset and size of a region exceed 2^64: the table is refused."),
        (41, "A region has no bytes: the table is refused."),
        (42, "Two regions overlap in the guest: the table is refused."),
        (43, "A file is smaller than offset and size of its region: the table is refused."),
        (44, "A region's descriptor is a socket, a directory, an eventfd or read-only: the table is refused."),
        (45, "A region's offset in its file is no multiple of a page: it is refused, or translated exactly."),
        (47, "A new table comes with the same addresses while rings run: no buffer is lost."),
        (48, "A new table lacks the memory of a ring: the ring rests, and goes on when its memory is back."),
        (49, "Memory is replaced while a discard is under way: the discard takes no byte of the new memory."),
        (50, "SET_MEM_TABLE has room for two regions and names one: it is accepted."),
        (51, "ADD_MEM_REG comes without a descriptor or with two: it is refused."),
        (52, "ADD_MEM_REG comes once too often for GET_MAX_MEM_SLOTS: it is refused."),
        (53, "REM_MEM_REG names an unknown region: it is refused and nothing is unmapped."),
        (54, "REM_MEM_REG comes with a descriptor: it is carried out and the descriptor closed."),
        (55, "REM_MEM_REG names another offset in the file: the region is removed all the same."),
        (56, "A front-end truncates its memory and kicks: only its own session suffers."),
        (57, "A region's file is sealed against writing: nothing is discarded and the buffers come back."),
    ),
    *edges(
        (46, "A region of huge pages has an offset that is no multiple of them: it is translated exactly."),
        not_applicable="Huge pages have to be reserved by the administrator, and a check needs no privilege.",
    ),
)
