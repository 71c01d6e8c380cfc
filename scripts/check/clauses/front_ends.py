"""What binds a vhost-user front-end alone: the vhost-user specification."""

from typing import Final

from scripts.check.clauses.clause import FRONT_END, Clause, Level, section

_M, _S = Level.MUST, Level.SHOULD

FRONT_ENDS: Final[tuple[Clause, ...]] = (
    *section(
        'vhost-user, "Communication"',
        ("V-52", FRONT_END, _M, "A front-end that got a wrong reply, or could not send all of a message, hangs up."),
    ),
    *section(
        'vhost-user, "Front-end message types"',
        ("V-53", FRONT_END, _M, "Protocol features are asked for and set only where bit 30 was offered."),
        ("V-54", FRONT_END, _M, "A message that belongs to a protocol feature is sent only if that was negotiated."),
        ("V-55", FRONT_END, _M, "SET_MEM_TABLE has a descriptor for each region, in the order of the regions."),
        ("V-56", FRONT_END, _M, "ADD_MEM_REG has one descriptor."),
        ("V-57", FRONT_END, _S, "REM_MEM_REG has no descriptor."),
        ("V-58", FRONT_END, _M, "Bit 8 of a kick, call or error message is set if no descriptor comes, and only then."),
        ("V-59", FRONT_END, _S, "SET_VRING_ENABLE is sent only where bit 30 was negotiated."),
        ("V-60", FRONT_END, _M, "The number in an in-band VRING_KICK is 0."),
    ),
    *section(
        'vhost-user, "Multiple queue support"',
        ("V-61", FRONT_END, _S, "No more queues are set up than GET_QUEUE_NUM has told."),
    ),
    *section(
        'vhost-user, "Migration"',
        ("V-62", FRONT_END, _S, "The log of SET_LOG_BASE covers all addresses of the guest."),
    ),
    *section(
        'vhost-user, "Back-end message types"',
        (
            "V-63",
            FRONT_END,
            _M,
            "With REPLY_ACK a request of the back-end with NEED_REPLY is answered with 0, or with another number.",
        ),
    ),
)
