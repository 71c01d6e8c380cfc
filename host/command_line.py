"""The options of ``vhost-user-balloon``, and the values that they take.

They follow the vhost-user "Backend program conventions": ``--socket-path`` or ``--fd``, ``--print-capabilities``.
"""

import argparse
import re
from typing import Final

from host.balloon.offered_features import FEATURE_NAMES, OFFERED, feature_names, parse_features
from host.balloon.personality import OURS, PERSONALITIES
from host.configuration.option_values import parse_group, parse_interval, parse_mode
from host.configuration.vm_option import parse_vm_option
from host.configuration.vm_table import DISCARDS
from host.control.guest_ram import RESERVE_BYTES
from host.guest_name import CHOICES as NAMES
from host.metrics.address import add_metrics_option
from host.vhost_user.queue_numbers import CHOICES
from protocol.errors import UsageError
from protocol.process.command_line import DISTRIBUTION, Parser, option_type, path_option
from protocol.process.log_lines import FORMATS, LEVELS, SYNONYMS
from protocol.units import format_size, parse_size

PROGRAM: Final = DISTRIBUTION

RECORD_LIMIT: Final = 1 << 30
"""Bytes of a recording unless told otherwise."""

_EPILOG = """\
example:
  vhost-user-balloon --socket-path /tmp/balloon.sock --control /tmp/balloon.ctl --events -
  balloon-guest --socket-path /tmp/balloon.sock --memory 1G --workload memhog     (in a second terminal)
  balloonctl --control /tmp/balloon.ctl set 1 512M                                (in a second terminal)
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="A vhost-user back-end for virtio-balloon: takes free page reports from many virtual machines and "
        "discards the pages they name.",
        epilog=_EPILOG,
    )
    _add_socket_options(parser.add_argument_group("where virtual machines connect"))
    processes = parser.add_argument_group("processes")
    processes.add_argument(
        "--workers",
        metavar="N|vm",
        type=option_type(parse_workers),
        default=None,
        help="serve in N worker processes, or in one for each virtual machine; a worker that dies is replaced, and no "
        "guest notices (default: 0, in this process)",
    )
    processes.add_argument(
        "--keeper",
        metavar="PATH",
        type=option_type(path_option),
        help="start the daemon as a child that stores its descriptors at the socket PATH, and start it again when it "
        "ends, or for an upgrade at SIGUSR2; no guest notices (needs --workers; systemd does the same)",
    )
    device = parser.add_argument_group("the device")
    _add_device_options(device)
    _add_balloon_options(device)
    control = parser.add_argument_group("control")
    control.add_argument(
        "--control", metavar="PATH", type=option_type(path_option), help="answer QMP commands on a unix socket at PATH"
    )
    _add_access_options(control, "control", "the control socket")
    control.add_argument(
        "--ask",
        metavar=("PATH", "COMMAND"),
        nargs="+",
        help="no daemon: give a COMMAND to the one with --control PATH (for scripts; people have balloonctl)",
    )
    watch = parser.add_argument_group("watching")
    _add_watch_options(watch)
    parser.add_argument(
        "--print-capabilities", action="store_true", help="print what this back-end is as JSON, ignore the rest, exit"
    )
    return parser


def _add_socket_options(where: argparse._ArgumentGroup) -> None:
    where.add_argument(
        "--socket-path", metavar="PATH", type=option_type(path_option), help="listen on this unix socket"
    )
    where.add_argument(
        "--vm",
        metavar="KEY=VALUE,...",
        type=option_type(parse_vm_option),
        action="append",
        default=[],
        help="listen on a further socket, for a guest with a name and a device of its own; keys: socket-path, name, "
        "socket-mode, socket-group and the options of the device, such as personality, balloon, packed=on; repeatable",
    )
    where.add_argument(
        "--config",
        metavar="FILE",
        type=option_type(path_option),
        help="listen on the sockets of a TOML file, each a [[vm]] with the same keys; SIGHUP reads it again",
    )
    _add_access_options(where, "socket", "the socket files")
    where.add_argument(
        "--fd",
        metavar="N",
        type=int,
        help="use this inherited socket, listening or connected, instead of --socket-path; --vm and --config add to it",
    )


def _add_watch_options(watch: argparse._ArgumentGroup) -> None:
    watch.add_argument("--events", metavar="PATH", help="append one JSON object a line to PATH, - for standard output")
    watch.add_argument(
        "--record",
        metavar="FILE",
        type=option_type(path_option),
        help="append what goes over the sockets and through the rings to FILE, for balloon-check explain",
    )
    watch.add_argument(
        "--record-limit",
        metavar="SIZE",
        type=option_type(parse_size),
        default=RECORD_LIMIT,
        help=f"stop recording when FILE has SIZE bytes (default: {format_size(RECORD_LIMIT)})",
    )
    add_metrics_option(watch)
    watch.add_argument(
        "--name-from",
        choices=NAMES,
        default="pid",
        help="name guests by their process (default), its cgroup or the socket's file name, in query-vms and metrics",
    )
    watch.add_argument(
        "-v", "--verbose", action="store_true", help="tell of sessions on standard error: the same as --log-level info"
    )
    watch.add_argument(
        "--log-level",
        type=lambda text: SYNONYMS.get(text, text),
        choices=LEVELS,
        help="log this and what is worse (default: warning)",
    )
    watch.add_argument("--syslog", action="store_true", help="log to the system's log instead of standard error")
    watch.add_argument(
        "--log-format",
        choices=FORMATS,
        default="auto",
        help="begin lines with the program's name (text) or their priority as <N> (journal); default: journal where "
        "the systemd journal reads standard error",
    )


def _add_access_options(group: argparse._ArgumentGroup, which: str, file: str) -> None:
    default = "0600" if which == "control" else "what the umask leaves"
    group.add_argument(
        f"--{which}-mode",
        metavar="MODE",
        type=option_type(parse_mode),
        help=f"permissions of {file}, octal (default: {default}, and 0660 with --{which}-group)",
    )
    group.add_argument(
        f"--{which}-group",
        metavar="GROUP",
        type=option_type(parse_group),
        help=f"group of {file}, a name or a number",
    )


def _add_device_options(device: argparse._ArgumentGroup) -> None:
    device.add_argument(
        "--discard",
        choices=DISCARDS,
        default="punch",
        help="punch: give reported pages back to the system (default); none: acknowledge only, for guests whose memory "
        "is pinned or must stay (VFIO, postcopy, snapshots)",
    )
    device.add_argument(
        "--personality",
        choices=tuple(PERSONALITIES),
        metavar="NAME",
        default=OURS.name,
        help=f"behave like another device, to try a driver with its habits: {', '.join(PERSONALITIES)}; --features and "
        f"--queue-numbers still count (default: {OURS.name})",
    )
    device.add_argument(
        "--features",
        metavar="NAME=on|off,...",
        type=option_type(parse_features),
        default={},
        help=f"offer these features to drivers or not; names: {', '.join(FEATURE_NAMES)} (default: "
        f"{', '.join(feature_names(OFFERED))})",
    )
    device.add_argument(
        "--page-poison",
        choices=("on", "off"),
        help="offer PAGE_POISON: guests that fill free pages with a pattern can then report too (default: off)",
    )
    device.add_argument(
        "--queue-numbers",
        choices=CHOICES,
        help="how drivers number the queues where some do not exist: found out from what they set up (auto), by the "
        "negotiated or the offered features, or fixed as in the specification (default: as --personality has it: auto)",
    )
    device.add_argument(
        "--in-band",
        choices=("on", "off"),
        default="off",
        help="offer notifications as messages on the sockets; User Mode Linux then takes them instead of event "
        "descriptors, which are faster (default: off)",
    )
    device.add_argument(
        "--statistics-interval",
        metavar="SECONDS",
        type=option_type(parse_interval),
        default=0,
        help="ask each guest for its statistics so often, in whole seconds (default: 0, only on request)",
    )


def _add_balloon_options(device: argparse._ArgumentGroup) -> None:
    device.add_argument(
        "--balloon",
        metavar="SIZE",
        type=option_type(parse_size),
        default=0,
        help="inflate each guest's balloon to SIZE (default: 0)",
    )
    device.add_argument(
        "--guest-memory",
        metavar="SIZE",
        type=option_type(parse_size),
        default=0,
        help="each guest has SIZE bytes of memory (default: what its memory table and its statistics say)",
    )
    device.add_argument(
        "--guest-reserve",
        metavar="SIZE",
        type=option_type(parse_size),
        default=RESERVE_BYTES,
        help=f"what a balloon leaves a guest at least, or half of its memory if that is less (default: "
        f"{format_size(RESERVE_BYTES)})",
    )


PER_VM: Final = 0
"""The size of the pool that stands for a worker for each virtual machine."""

WORKERS_MAX: Final = 64


def parse_workers(text: str) -> int | None:
    """Return the size of the pool of workers, :data:`PER_VM` for one for each machine, None for no workers. Raises
    :class:`UsageError` for anything else."""
    if text == "vm":
        return PER_VM
    if re.fullmatch("[0-9]{1,3}", text) is None or int(text) > WORKERS_MAX:
        raise UsageError(f"neither a number from 0 to {WORKERS_MAX} nor vm: {text!r}")
    return int(text) or None
