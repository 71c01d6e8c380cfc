"""``balloonctl``: the command line."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

from protocol.errors import UsageError
from protocol.process.command_line import Parser, option_type, path_option, run_command
from protocol.units import parse_size

PROGRAM: Final = "balloonctl"

LEVEL_NAMES: Final = ("off", "error", "warning", "info", "debug")
"""Those of :mod:`protocol.process.log_lines`, which takes long to load."""

_EPILOG: Final = """\
Without --control the sockets are those of $BALLOON_CONTROL (paths separated by colons), or else
/run/vhost-user-balloon/*.ctl and $XDG_RUNTIME_DIR/vhost-user-balloon/*.ctl. VM is a number or a name of `status`, with
several daemons after the daemon's name and a colon.

exit status: 0, 1 for a failure or a machine that is not healthy (doctor), 2 for a usage error

examples:
  vhost-user-balloon --socket-path /tmp/balloon.sock --control /tmp/balloon.ctl
  balloonctl --control /tmp/balloon.ctl status                          (in a second terminal)
  balloonctl --control /tmp/a.ctl --control /tmp/b.ctl doctor
  balloonctl reclaim 3 --floor 1G --pace 200M --stop-on-refault
  balloonctl inhibit 3 --why "snapshot is restored"
"""

INTERVAL_LEAST: Final = 0.1
INTERVAL_MOST: Final = 3600.0

Add = Callable[[argparse.ArgumentParser], None]


def _vm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vm", metavar="VM", nargs="?", help="the machine (default: the only one)")


def _set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("vm", metavar="VM", help="the machine")
    parser.add_argument(
        "size", metavar="SIZE", type=option_type(parse_size), help="what the guest is left with, such as 512M"
    )


def _reclaim(parser: argparse.ArgumentParser) -> None:
    _vm(parser)
    size = option_type(parse_size)
    parser.add_argument("--method", choices=("hint", "inflate"), help="how (default: what suits the driver)")
    parser.add_argument("--floor", metavar="SIZE", type=size, help="leave the guest SIZE at least")
    parser.add_argument("--pace", metavar="SIZE", type=size, help="take at most SIZE a second")
    parser.add_argument("--stop-on-refault", action="store_true", help="end when the guest reads pages back")


def _inhibit(parser: argparse.ArgumentParser) -> None:
    _vm(parser)
    parser.add_argument("--why", metavar="TEXT", help="the reason, which status and doctor repeat")


def _allow(parser: argparse.ArgumentParser) -> None:
    _vm(parser)
    parser.add_argument("--force", action="store_true", help="also where the daemon itself sees a reason against it")


def _level(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("level", choices=LEVEL_NAMES, help="log this and what is worse")


def _ask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="COMMAND", help="a command of the control socket (query-commands lists them)")
    parser.add_argument("arguments", metavar="NAME=VALUE", nargs="*", help="its arguments: JSON, sizes or text")


def _interval(text: str) -> float:
    seconds = float(text)
    if not INTERVAL_LEAST <= seconds <= INTERVAL_MOST:
        raise UsageError(f"not from {INTERVAL_LEAST} to {INTERVAL_MOST:.0f} seconds: {text}")
    return seconds


def _top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=option_type(_interval),
        default=1.0,
        help="time between two looks (default: 1)",
    )


def _nothing(_parser: argparse.ArgumentParser) -> None:
    pass


COMMANDS: Final[dict[str, tuple[str, str, Add]]] = {
    "status": ("status", "a line for each machine: where its memory is, and its health", _nothing),
    "show": ("show", "all facts about one machine", _vm),
    "doctor": ("doctor", "why nothing comes back, and what to do about it", _vm),
    "top": ("top", "the machines again and again, with bars and keys", _top),
    "watch": ("watch", "events as they happen, until Ctrl-C", _nothing),
    "set": ("set_size", "inflate or deflate a balloon: leave the guest SIZE", _set),
    "stats": ("stats", "ask the guest for its statistics", _vm),
    "reclaim": ("reclaim", "have the guest give up, once, what it does not use", _reclaim),
    "inhibit": ("inhibit", "acknowledge reports without discarding, while pages must stay", _inhibit),
    "allow": ("allow", "discard again", _allow),
    "disconnect": ("disconnect", "end a machine's session", _vm),
    "log-level": ("log_level", "have the daemons log more or less", _level),
    "ask": ("ask", "any command of the control socket", _ask),
}
"""The function of :mod:`host.balloonctl.commands`, what it does, and its options, by command."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Shows and controls the balloons of virtual machines, through the control sockets of "
        "vhost-user-balloon daemons.",
        epilog=_EPILOG,
    )
    _add_common(parser, "first", default_json=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, (_, does, add) in COMMANDS.items():
        command = commands.add_parser(
            name, help=does, description=does[0].upper() + does[1:] + ".", epilog=_EPILOG, prog=f"{PROGRAM} {name}"
        )
        command.prog = f"{parser.prog} {name}"
        add(command)
        # They may come before or after the command.
        _add_common(command, "second", default_json=argparse.SUPPRESS)
    return parser


def _add_common(parser: argparse.ArgumentParser, name: str, *, default_json: object) -> None:
    parser.add_argument(
        "--control",
        metavar="PATH",
        dest=name,
        action="append",
        type=option_type(path_option),
        default=[],
        help="control socket of a daemon; several times for several daemons",
    )
    parser.add_argument("--json", action="store_true", default=default_json, help="print JSON")


def _run(arguments: argparse.Namespace) -> int:
    # Late: --help is quick.
    from host.balloonctl import commands
    from host.balloonctl.daemons import Daemons

    function = getattr(commands, COMMANDS[arguments.command][0])
    waits = arguments.command in ("reclaim", "watch", "ask")
    with Daemons(arguments.first + arguments.second, answer_seconds=None if waits else 30.0) as daemons:
        return int(function(arguments, daemons))


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command; return the exit status."""
    arguments = make_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
