"""``vhost-user-balloon``: the command line of the daemon.

Options follow the vhost-user "Backend program conventions": ``--socket-path`` or ``--fd``, ``--print-capabilities``.
"""

import argparse
import asyncio
import contextlib
import gc
import grp
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, NoReturn

from host.balloon.balloon_statistics import STATISTICS_INTERVAL_MAX
from host.balloon.offered_features import (
    FEATURE_NAMES,
    OFFERED,
    check_dependencies,
    feature_names,
    parse_features,
    switch_features,
)
from host.balloon.personality import OURS, PERSONALITIES
from host.control.guest_ram import RESERVE_BYTES
from host.guest_name import CHOICES as NAMES
from host.memory.sigbus import guard_mappings
from host.metrics.address import add_metrics_option
from host.vhost_user.queue_numbers import AUTO, CHOICES
from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import DISTRIBUTION, Parser, option_type, path_option, run_command, version
from protocol.process.standard_error import drain_standard_error, queued_standard_error
from protocol.units import format_size, parse_size
from protocol.virtio_balloon import NUM_PAGES_MAX, PFN_SHIFT

if TYPE_CHECKING:
    from host.daemon import DaemonOptions
    from protocol.process.recording_file import RecordingFile

PROGRAM = DISTRIBUTION

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
    where = parser.add_argument_group("where virtual machines connect (one of the two)")
    where.add_argument(
        "--socket-path", metavar="PATH", type=option_type(path_option), help="listen on this unix socket"
    )
    _add_access_options(where, "socket", "the socket file at --socket-path")
    where.add_argument("--fd", metavar="N", type=int, help="use this inherited socket, listening or connected")
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
    watch.add_argument("-v", "--verbose", action="store_true", help="tell of sessions on standard error")


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
        choices=("punch", "none"),
        default="punch",
        help="punch: give reported pages back to the system (default); none: acknowledge only, for guests whose memory "
        "is pinned or must stay (VFIO, postcopy, snapshots)",
    )
    device.add_argument(
        "--personality",
        choices=tuple(PERSONALITIES),
        default=OURS.name,
        help=f"behave like another device, to try a driver with its habits; --features and --queue-numbers still count "
        f"(default: {OURS.name})",
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
        help="inflate each guest's balloon to SIZE",
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
        help=f"what a balloon leaves a guest, or half of its memory if less (default: {format_size(RESERVE_BYTES)})",
    )


def print_capabilities() -> int:
    """Print the JSON that the vhost-user conventions ask for; return the exit status."""
    print(json.dumps({"type": "balloon", "features": list(FEATURE_NAMES)}))
    return 0


def _check_combinations(arguments: argparse.Namespace) -> None:
    """Raise :class:`UsageError` for options that contradict each other or need another."""
    if (arguments.socket_path is None) == (arguments.fd is None):
        raise UsageError("exactly one of --socket-path and --fd is needed")
    if arguments.control is not None and arguments.control == arguments.socket_path:
        raise UsageError(f"--control {arguments.control}: virtual machines connect there, by --socket-path")
    if arguments.socket_path is None and (arguments.socket_mode, arguments.socket_group) != (None, None):
        raise UsageError("--socket-mode and --socket-group need --socket-path")
    if arguments.control is None and (arguments.control_mode, arguments.control_group) != (None, None):
        raise UsageError("--control-mode and --control-group need --control")


def _balloon_pages(size: int) -> int:
    """Return the pages of a balloon of ``size`` bytes. Raises :class:`UsageError` if they are not whole or too many."""
    pages, ragged = divmod(size, 1 << PFN_SHIFT)
    if ragged:
        raise UsageError(f"--balloon: not whole pages of {1 << PFN_SHIFT} bytes")
    if pages > NUM_PAGES_MAX:
        raise UsageError(f"--balloon: a balloon is smaller than {format_size((NUM_PAGES_MAX + 1) << PFN_SHIFT)}")
    return pages


def _features(arguments: argparse.Namespace) -> int:
    """Return the feature word to offer. Raises :class:`UsageError` if two options contradict each other."""
    switches = dict(arguments.features)
    if arguments.page_poison is not None:
        poison = arguments.page_poison == "on"
        if switches.setdefault("page-poison", poison) is not poison:
            raise UsageError(f"--page-poison {arguments.page_poison}: --features says otherwise")
    features = switch_features(PERSONALITIES[arguments.personality].features, switches)
    check_dependencies(features)
    return features


def _queue_numbers(arguments: argparse.Namespace) -> str:
    if arguments.queue_numbers is not None:
        return str(arguments.queue_numbers)
    dialect = PERSONALITIES[arguments.personality].queue_numbers
    return AUTO if dialect is None else dialect.value


def check_machine() -> None:
    """Raise :class:`BalloonError` if this machine or interpreter lacks what the daemon relies on."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        # host/memory/sigbus.py handles a fault with Python code, on the thread that holds the interpreter's lock.
        raise BalloonError("this Python runs without its global lock (free-threaded), which is not supported")
    if not os.path.exists("/proc/self/fd"):
        raise BalloonError("/proc is not mounted: files that guests pass could not be judged")


def _run(arguments: argparse.Namespace) -> int:
    # Late: --help and --print-capabilities are quick.
    from host.daemon import DaemonOptions
    from host.signals import STOP_SIGNALS
    from protocol.process.listening_socket import SocketAccess
    from protocol.process.stray_signals import ignore_stray_signals
    from protocol.virtio_ring import refuse_big_endian

    def access(mode: int | None, group: int | None, default: int | None) -> SocketAccess:
        return SocketAccess(mode if mode is not None else 0o660 if group is not None else default, group)

    refuse_big_endian()
    check_machine()
    ignore_stray_signals(STOP_SIGNALS)
    _check_combinations(arguments)
    options = DaemonOptions(
        socket_path=arguments.socket_path,
        fd=arguments.fd,
        features=_features(arguments),
        discard=arguments.discard == "punch",
        balloon_pages=_balloon_pages(arguments.balloon),
        queue_numbers=_queue_numbers(arguments),
        in_band=arguments.in_band == "on",
        control_path=arguments.control,
        statistics_interval=arguments.statistics_interval,
        name_from=arguments.name_from,
        guest_memory=arguments.guest_memory,
        guest_reserve=arguments.guest_reserve,
        socket_access=access(arguments.socket_mode, arguments.socket_group, None),
        control_access=access(arguments.control_mode, arguments.control_group, 0o600),
        personality=PERSONALITIES[arguments.personality],
        metrics=arguments.metrics,
    )
    return _serve(arguments, options)


def _serve(arguments: argparse.Namespace, options: "DaemonOptions") -> int:
    from host.daemon import Daemon
    from host.signals import hold_signals
    from protocol.process.events import open_event_log

    hold_signals()  # before the first thread begins, for all threads
    events = open_event_log(arguments.events, time.monotonic)
    guard_mappings()
    _share_the_interpreter()
    with (
        contextlib.closing(events),
        _recording(arguments) as recording,
        contextlib.closing(Daemon(options, events, recording)) as daemon,
        asyncio.Runner() as runner,
    ):

        def leave_at_once() -> NoReturn:
            daemon.close()
            _leave_threads_behind()

        daemon.on_overdue = leave_at_once
        runner.get_loop()  # before there is a coroutine that would be left unawaited if there are no descriptors
        runner.run(daemon.run())
        hold_signals()  # one more must not cut the end short
        if daemon.held_up:
            daemon.close()
            events.close()
            if recording is not None:
                recording.close()
            _leave_threads_behind()
    return 0


def _recording(arguments: argparse.Namespace) -> "AbstractContextManager[RecordingFile | None]":
    from protocol.process.recording_file import open_recording

    if arguments.record is None:
        return contextlib.nullcontext()
    recording = open_recording(arguments.record, f"{PROGRAM} {version()}", arguments.record_limit)
    return contextlib.closing(recording)


def _leave_threads_behind() -> NoReturn:
    # The interpreter would wait for its threads, and one that a front-end holds up comes back when that one pleases.
    # What it works on stays open to the end: the number of a closed file may be another file's by then.
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or absent from the start
        sys.stdout.flush()
    drain_standard_error()
    os._exit(0)


def _share_the_interpreter() -> None:
    # A worker that walks the longest chains of a hostile driver must not delay the event loop and other guests'
    # workers by the interpreter's usual switch interval of 5 ms each time,
    sys.setswitchinterval(0.0001)
    # nor by full collections, which stop all threads while they traverse every object, such chains' ranges among them.
    # A tenth of the collections is enough for the few cycles made here, and objects loaded by now stay anyway.
    gc.freeze()
    youngest, middle, _ = gc.get_threshold()
    gc.set_threshold(youngest, middle, 100)


def parse_mode(text: str) -> int:
    """Return octal permissions. Raises :class:`UsageError` for anything else, and for more than 0777."""
    if re.fullmatch("0?[0-7]{3}", text) is None:
        raise UsageError(f"not three octal digits, such as 660: {text!r}")
    return int(text, 8)


def parse_group(text: str) -> int:
    """Return the id of a group given by name or number. Raises :class:`UsageError` if there is no such group."""
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise UsageError(f"no group {text!r}") from None


def parse_interval(text: str) -> int:
    """Return whole seconds. Raises :class:`UsageError` for anything else, for more than QEMU allows, and below 0."""
    try:
        seconds = int(text)
    except ValueError:
        raise UsageError(f"not a number of whole seconds: {text!r}") from None
    if not 0 <= seconds <= STATISTICS_INTERVAL_MAX:
        raise UsageError(f"not from 0 to {STATISTICS_INTERVAL_MAX}: {text}")
    return seconds


def _ask(words: Sequence[str]) -> int:
    from host.qmp.ask import ask, parse_arguments

    if len(words) < 2:
        raise UsageError("--ask needs the PATH of a control socket and a COMMAND, for example query-vms")
    path, command, *arguments = words
    print(json.dumps(ask(path_option(path), command, parse_arguments(arguments)), indent=2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; return the exit status: 0 after SIGTERM, 1 for a failure, 2 for a usage error."""
    words = sys.argv[1:] if argv is None else list(argv)
    if "--print-capabilities" in words:
        return run_command(PROGRAM, print_capabilities)
    arguments = make_parser().parse_args(words)
    if arguments.ask is not None:
        return run_command(PROGRAM, lambda: _ask(arguments.ask))
    with queued_standard_error(PROGRAM):
        logging.basicConfig(
            level=logging.INFO if arguments.verbose else logging.WARNING,
            format=f"{PROGRAM}: %(message)s",
            stream=sys.stderr,
        )
        return run_command(PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
