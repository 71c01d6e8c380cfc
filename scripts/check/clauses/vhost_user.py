"""What binds a vhost-user front-end and its back-end: the vhost-user specification."""

from typing import Final

from scripts.check.clauses.clause import BACK_END, FRONT_END, Clause, Level, section

_M, _S = Level.MUST, Level.SHOULD
_EITHER = BACK_END | FRONT_END

VHOST_USER: Final[tuple[Clause, ...]] = (
    *section(
        'vhost-user, "Header" and "Ancillary data"',
        ("V-1", _EITHER, _M, "A message begins with request, flags and size; the version in the flags is 1."),
        ("V-2", BACK_END, _M, "A reply has the number of its request and flags 0x5."),
        ("V-3", BACK_END, _M, "A message that comes in pieces, or with the next, is understood as a whole one."),
        ("V-4", BACK_END, _M, "A message of a size that its request cannot have is not carried out."),
        ("V-5", BACK_END, _M, "Descriptors belong to the message on whose first byte they came."),
        ("V-6", BACK_END, _M, "Descriptors that a message may not have, or that was refused, are closed."),
        ("V-7", BACK_END, _M, "A front-end that sends half a message, or nothing, costs no other front-end anything."),
        ("V-8", BACK_END, _M, "An end of the connection, wherever it comes, ends the session and not the back-end."),
    ),
    *section(
        'vhost-user, "Communication" and REPLY_ACK',
        ("V-9", BACK_END, _M, "A request with a reply of its own is answered once, with or without NEED_REPLY."),
        (
            "V-10",
            BACK_END,
            _M,
            "With REPLY_ACK a request with NEED_REPLY is answered with 0 if it was done, else with another number.",
        ),
        ("V-11", BACK_END, _M, "Without NEED_REPLY a request without a reply of its own is not answered."),
        ("V-12", BACK_END, _S, "A request that the back-end does not know does not end the session."),
    ),
    *section(
        'vhost-user, "Feature bits" and "Protocol features"',
        ("V-13", BACK_END, _M, "Feature bits that were not offered are not accepted."),
        ("V-14", BACK_END, _M, "Protocol features can be asked for and set before the features are."),
        ("V-15", BACK_END, _M, "Protocol features that were not offered are not accepted."),
        ("V-16", BACK_END, _M, "The features that are offered stay the same for a connection."),
        ("V-17", BACK_END, _M, "SET_FEATURES on a running ring changes neither its indices nor whether it is enabled."),
        ("V-18", BACK_END, _M, "INBAND_NOTIFICATIONS goes with BACKEND_REQ and REPLY_ACK only."),
        ("V-19", BACK_END, _M, "With MQ GET_QUEUE_NUM tells the most queues that a driver may use."),
        ("V-20", BACK_END, _S, "SET_OWNER and RESET_OWNER are tolerated when they are missing, late, or repeated."),
    ),
    *section(
        'vhost-user, "Memory regions description"',
        ("V-21", BACK_END, _M, "A memory table has as many descriptors as regions, at most 8 of them."),
        (
            "V-22",
            BACK_END,
            _M,
            "A region that cannot be mapped, as what wraps in its file or is no memory, is refused.",
        ),
        ("V-23", BACK_END, _M, "A refused memory table leaves the one before in force."),
        ("V-24", BACK_END, _M, "A new memory table on running rings loses no buffer."),
        ("V-25", BACK_END, _M, "ADD_MEM_REG has one descriptor, and GET_MAX_MEM_SLOTS is kept."),
        ("V-26", BACK_END, _M, "REM_MEM_REG removes the region with the same addresses and size, and no other."),
        ("V-27", BACK_END, _M, "Nothing is touched in memory that was removed."),
    ),
    *section(
        'vhost-user, "Vring descriptor index", "Vring state", "Vring address"',
        ("V-28", BACK_END, _M, "A queue number beyond the device's is refused, compared as a whole number."),
        ("V-29", BACK_END, _M, "A size that the ring format does not have is refused."),
        (
            "V-30",
            BACK_END,
            _M,
            "Ring addresses are user addresses, aligned, and in the memory as a whole, or the ring is not served.",
        ),
        ("V-31", BACK_END, _M, "The messages that set a ring up may come in any order."),
        ("V-32", BACK_END, _M, "A ring goes on at the base that it is given."),
    ),
    *section(
        'vhost-user, "Ring states"',
        ("V-33", BACK_END, _M, "A stopped ring is not touched."),
        ("V-34", BACK_END, _M, "A disabled ring has no effect on the device or the memory."),
        ("V-35", BACK_END, _M, "A ring that is enabled serves what it has, without another kick."),
        (
            "V-36",
            BACK_END,
            _M,
            "GET_VRING_BASE stops the ring and tells where it goes on: each buffer comes back once.",
        ),
        ("V-37", BACK_END, _M, "A suspended device, all of whose rings are stopped, sends no notification."),
        ("V-38", BACK_END, _M, "Without bit 30 in SET_FEATURES rings are enabled from the start."),
        ("V-39", BACK_END, _M, "RESET_DEVICE stops all rings and keeps the session."),
    ),
    *section(
        "vhost-user, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR",
        ("V-40", BACK_END, _M, "A descriptor comes unless bit 8 says that there is none."),
        ("V-41", BACK_END, _M, "A kick that was there before its descriptor was set is not lost."),
        ("V-42", BACK_END, _M, "A descriptor that is replaced is closed, and no notification is lost."),
        ("V-43", BACK_END, _M, "A call descriptor that is full, gone, or missing stops nothing."),
    ),
    *section(
        'vhost-user, "Virtio device config space"',
        (
            "V-44",
            BACK_END,
            _M,
            "GET_CONFIG is answered with as many bytes as were asked for, or with none for an error.",
        ),
        ("V-45", BACK_END, _M, "SET_CONFIG changes only what a driver may write."),
    ),
    *section(
        'vhost-user, "Inflight I/O tracking"',
        ("V-46", BACK_END, _M, "GET_INFLIGHT_FD gives a file for the queues that were asked for, and is bounded."),
        ("V-47", BACK_END, _M, "A record that is given back is used only if it fits."),
    ),
    *section(
        'vhost-user, "Migration"',
        ("V-48", BACK_END, _M, "With LOG_SHMFD SET_LOG_BASE is answered once, and a log beyond its file is refused."),
        ("V-49", BACK_END, _M, "Writes to memory are logged while LOG_ALL is set, and only then."),
        ("V-50", BACK_END, _M, "SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE are answered with their errors."),
    ),
    *section(
        'vhost-user, "Back-end communication"',
        ("V-51", BACK_END, _S, "A channel of SET_BACKEND_REQ_FD that is closed or replaced stops nothing."),
    ),
)
