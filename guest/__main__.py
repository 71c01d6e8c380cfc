"""``balloon-guest``: runs the emulated guest, or asks a running one."""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence

from protocol.process.command_line import path_option, run_command

PROGRAM = "balloon-guest"

# The guest's own modules are imported when they are needed: an interrupt while that goes on ends the program quietly.


def _ask(path: str, view: str) -> int:
    from guest.control import ask

    print(ask(path_option(path), view), end="", flush=True)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from guest.command_line import vmm_options
    from guest.vmm import VirtualMachine
    from protocol.process.events import open_event_log
    from protocol.process.stray_signals import ignore_stray_signals
    from protocol.virtio_ring import refuse_big_endian

    refuse_big_endian()
    ignore_stray_signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT))
    options = vmm_options(arguments)
    events = open_event_log(arguments.events, time.monotonic)

    async def power_on() -> int:
        return await VirtualMachine(options, events).run()

    try:
        return asyncio.run(power_on())
    finally:
        events.close()


def _parse_and_run(argv: Sequence[str] | None) -> int:
    from guest.command_line import make_parser

    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.ask is not None:
        return _ask(*arguments.ask)
    if arguments.socket_path is None:
        parser.error("--socket-path PATH is missing: where the back-end listens")
    return _run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the guest; return the exit status: 0, 1 for a failure or a corrupted page, 2 for a usage error."""
    return run_command(PROGRAM, lambda: _parse_and_run(argv))


if __name__ == "__main__":
    sys.exit(main())
