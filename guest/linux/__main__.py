"""``balloon-linux``: an unmodified Linux kernel as a user process, attached to a vhost-user balloon daemon."""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from guest.linux.daemon_socket import require_listening
from guest.linux.init_script import visible_in_guest
from guest.linux.kernel_command_line import parse_memory, parse_parameters
from guest.linux.kernel_files import NEEDED_OPTIONS, locate
from guest.linux.kernel_run import KernelRun, Plan
from guest.linux.ram_file import choose_ram_directory
from guest.linux.streams import is_terminal, occupy_standard_descriptors
from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import Parser, option_type, path_option, run_command
from protocol.process.events import open_event_log

PROGRAM = "balloon-linux"
NOT_FOUND = 127
"""Exit status for a COMMAND that does not exist, as a shell has it."""

_DESCRIPTION = """\
Boots an unmodified Linux kernel under User Mode Linux (no KVM, no root), its memory shared with a vhost-user balloon
daemon, and runs COMMAND there: any program of this machine, whose file system is the guest's, read-only. /tmp is the
guest's own, in its memory; the machine's /tmp is at /run/host/tmp. Without COMMAND: an interactive shell.
The exit status is COMMAND's; 1 if anything else failed, 2 for a usage error.
"""
_EPILOG = f"""\
example:
  vhost-user-balloon --socket-path /tmp/balloon.sock --events -          (in another terminal)
  balloon-linux --socket-path /tmp/balloon.sock --memory 512M -- \\
      sh -c 'dd if=/dev/zero of=/tmp/fill bs=1M count=300 && rm /tmp/fill && sleep 10'

kernel, balloon module and busybox are linux.uml and busybox of this machine, or are fetched once as Debian packages
(user-mode-linux, busybox-static; no root needed) into the cache directory, $XDG_CACHE_HOME or ~/.cache.

a kernel given with --kernel needs these options built in:
  {", ".join(NEEDED_OPTIONS[:3])},
  {", ".join(NEEDED_OPTIONS[3:])}
and CONFIG_VIRTIO_BALLOON, built in or as a module.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, without COMMAND."""
    parser = Parser(
        prog=PROGRAM,
        usage="%(prog)s --socket-path PATH [options] [-- COMMAND...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("--socket-path", metavar="PATH", type=option_type(path_option), help="the daemon's unix socket")
    parser.add_argument("--memory", metavar="SIZE", default="512M", help="the guest's memory (default: 512M)")
    parser.add_argument("--kernel", metavar="PATH", type=Path, help="a User Mode Linux kernel of yours")
    parser.add_argument("--modules", metavar="DIR", type=Path, help="where its virtio_balloon.ko is, at any depth")
    parser.add_argument(
        "--append",
        metavar="PARAMETERS",
        type=option_type(parse_parameters),
        action="extend",
        default=[],
        help="add to the kernel's command line, for example init_on_free=1 (repeatable)",
    )
    parser.add_argument(
        "--events",
        metavar="PATH",
        help="append one JSON object a line to PATH; - is standard output, which COMMAND writes to as well",
    )
    parser.add_argument(
        "--zones", action="store_true", help="ask the guest once a second what its zones have free, for --events"
    )
    parser.add_argument("--kernel-log", metavar="PATH", type=Path, help="keep the kernel's messages in this file")
    parser.add_argument("--fetch-only", action="store_true", help="see that kernel and busybox are there, and exit")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before the first ``--`` and those after it."""
    words = list(words)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def resolve_command(words: Sequence[str]) -> list[str]:
    """Return COMMAND with its program as a path that the guest can execute; without words, the user's shell.

    Raises:
        BalloonError: the program does not exist.
    """
    if not words:
        shell = os.environ.get("SHELL", "")
        words = [shell if shutil.which(shell) else "/bin/sh"]
    program = shutil.which(words[0])
    if program is None:
        raise BalloonError(f"{words[0]}: no such program")
    return [visible_in_guest(os.path.abspath(program)), *words[1:]]


class ProgressLine:
    """One line on standard error, if that is a terminal, which each call replaces; ``""`` clears it."""

    def __init__(self) -> None:
        self._shown = False

    def __call__(self, line: str) -> None:
        if is_terminal(2) and (line or self._shown):
            sys.stderr.write(f"\r\x1b[K{PROGRAM}: {line} ..." if line else "\r\x1b[K")
            sys.stderr.flush()
        self._shown = bool(line)


show_progress = ProgressLine()


def _notice(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr)


def _run(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    if arguments.fetch_only:
        try:
            files = locate(kernel=arguments.kernel, modules=arguments.modules, progress=show_progress)
        finally:
            show_progress("")
        module = files.module or "(built in)"
        print(f"kernel {files.kernel}\nrelease {files.release}\nmodule {module}\nbusybox {files.busybox}")
        return 0
    if arguments.socket_path is None:
        raise UsageError("--socket-path is needed: where vhost-user-balloon listens")
    memory = parse_memory(arguments.memory)
    require_listening(arguments.socket_path)
    try:
        argv = resolve_command(command)
    except BalloonError as error:
        _notice(str(error))
        return NOT_FOUND
    events = open_event_log(arguments.events, time.monotonic)
    try:
        files = locate(kernel=arguments.kernel, modules=arguments.modules, progress=show_progress)
        ram = choose_ram_directory(memory, os.environ)
        if not ram.is_tmpfs:
            _notice(f"guest memory is in {ram.path}, which is on a disk: slow, and its writes cost bandwidth")
        plan = Plan(
            files=files,
            socket_path=arguments.socket_path,
            memory=memory,
            ram=ram,
            argv=argv,
            directory=os.getcwd(),
            environment=dict(os.environ),
            kernel_log=arguments.kernel_log,
            parameters=arguments.append,
            zones=arguments.zones,
        )
        return KernelRun(plan, events, show_progress, _notice).run()
    finally:
        show_progress("")
        events.close()


def _terminated(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher; return COMMAND's exit status, 1 for a failure, 2 for a usage error."""
    occupy_standard_descriptors()
    options, command = split_command(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    arguments, unknown = parser.parse_known_args(options)
    if unknown:
        hint = ""
        if arguments.command and not command:
            hint = f": write -- before COMMAND, as in {PROGRAM} ... -- {arguments.command[0]}"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    handler = signal.signal(signal.SIGTERM, _terminated)  # what is unpacked so far is removed then
    try:
        return run_command(PROGRAM, lambda: _run(arguments, [*arguments.command, *command]))
    except OSError as error:  # a full disk, the limit of processes: the system's error, not a fault of this program
        _notice(str(error))
        return 1
    finally:
        show_progress("")
        signal.signal(signal.SIGTERM, handler)


if __name__ == "__main__":
    sys.exit(main())
