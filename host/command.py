"""What the command ``vhost-user-balloon`` does, by its options.

Options follow the vhost-user "Backend program conventions": ``--socket-path`` or ``--fd``, ``--print-capabilities``.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from host.balloon.offered_features import feature_names
from host.command_line import PROGRAM, make_parser
from host.configuration.device_options import DeviceSettings, balloon_pages
from host.configuration.requested_sockets import RequestedSockets
from host.configuration.vm_socket import SocketDefaults, access
from host.daemon_options import DaemonOptions
from host.memory.sigbus import guard_mappings
from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import DISTRIBUTION, path_option, run_command, version
from protocol.process.log_lines import LEVELS, is_journal, log_to_standard_error, make_formatter
from protocol.process.standard_error import drain_standard_error, queued_standard_error

if TYPE_CHECKING:
    from host.control.daemon_status import DaemonStatus
    from host.recording.recording_relay import RecordingRelay
    from host.service_manager.service_manager import HandedOver
    from host.supervision.machines import Machines
    from host.supervision.zygote import Confine, Zygote
    from protocol.process.events import EventLog
    from protocol.process.recording_file import RecordingFile


def _check_combinations(arguments: argparse.Namespace) -> None:
    """Raise :class:`UsageError` for options that contradict each other or need another."""
    listens = bool(arguments.vm) or (arguments.socket_path, arguments.config) != (None, None)
    if not listens and arguments.fd is None:
        raise UsageError("one of --socket-path, --vm, --config and --fd is needed")
    if arguments.socket_path is not None and arguments.fd is not None:
        raise UsageError("--socket-path and --fd are the same socket in two ways; further ones are --vm and --config")
    if arguments.control is not None and arguments.control == arguments.socket_path:
        raise UsageError(f"--control {arguments.control}: virtual machines connect there, by --socket-path")
    if not listens and (arguments.socket_mode, arguments.socket_group) != (None, None):
        raise UsageError("--socket-mode and --socket-group need --socket-path, --vm or --config")
    if arguments.keeper is not None and (arguments.workers is None or arguments.fd is not None):
        raise UsageError("--keeper needs --workers and no --fd: what serves guests in one process ends with it")
    if arguments.control is None and (arguments.control_mode, arguments.control_group) != (None, None):
        raise UsageError("--control-mode and --control-group need --control")


def _settings(arguments: argparse.Namespace) -> DeviceSettings:
    """Return what is said of devices in general. Raises :class:`UsageError` if two options contradict each other."""
    switches = dict(arguments.features)
    if arguments.page_poison is not None:
        poison = arguments.page_poison == "on"
        if switches.setdefault("page-poison", poison) is not poison:
            raise UsageError(f"--page-poison {arguments.page_poison}: --features says otherwise")
    try:
        balloon_pages(arguments.balloon)
    except UsageError as error:
        raise UsageError(f"--balloon: {error}") from error
    return DeviceSettings(
        personality=arguments.personality,
        switches=switches,
        queue_numbers=arguments.queue_numbers,
        discard=arguments.discard == "punch",
        balloon=arguments.balloon,
        in_band=arguments.in_band == "on",
        statistics_interval=arguments.statistics_interval,
        guest_memory=arguments.guest_memory,
        guest_reserve=arguments.guest_reserve,
    )


def check_machine() -> None:
    """Raise :class:`BalloonError` if this machine or interpreter lacks what the daemon relies on."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        # host/memory/sigbus.py handles a fault with Python code, on the thread that holds the interpreter's lock.
        raise BalloonError("this Python runs without its global lock (free-threaded), which is not supported")
    if not os.path.exists("/proc/self/fd"):
        raise BalloonError("/proc is not mounted: files that guests pass could not be judged")


def _run(arguments: argparse.Namespace, zygote: "Zygote | None") -> int:
    # Late: --help is quick.
    from host.signals import SIGNALS, hold_signals
    from protocol.process.stray_signals import ignore_stray_signals
    from protocol.process.system_log import log_to_syslog
    from protocol.virtio_ring import refuse_big_endian

    if arguments.syslog:
        log_to_syslog(PROGRAM)
    refuse_big_endian()
    check_machine()
    hold_signals()  # what a service manager sends during the start waits for the daemon
    ignore_stray_signals(SIGNALS)
    _check_combinations(arguments)
    return _serve(arguments, _options(arguments, sockets=True), zygote)


def _options(arguments: argparse.Namespace, *, sockets: bool) -> DaemonOptions:
    # Without `sockets` for a worker, which is told of its guests' devices one by one.
    settings = _settings(arguments)
    defaults = SocketDefaults(settings=settings, mode=arguments.socket_mode, group=arguments.socket_group)
    requested = RequestedSockets(
        socket_path=arguments.socket_path,
        vms=arguments.vm,
        config=arguments.config,
        control=arguments.control,
        defaults=defaults,
    )
    return DaemonOptions(
        sockets=requested.read() if sockets else (),
        fd=arguments.fd,
        device=settings.options("", None),
        reload=None if arguments.config is None else requested.read,
        control_path=arguments.control,
        name_from=arguments.name_from,
        control_access=access(arguments.control_mode, arguments.control_group, 0o600),
        metrics=arguments.metrics,
        log_format=arguments.log_format,
        syslog=arguments.syslog,
    )


def _serve(arguments: argparse.Namespace, options: DaemonOptions, zygote: "Zygote | None") -> int:
    from host.control.daemon_status import DaemonStatus
    from host.daemon import Daemon
    from host.peers.fd_limit import raise_fd_limit
    from host.qmp.qmp import build_version
    from host.service_manager.listeners import Listeners
    from host.service_manager.service_manager import ServiceManager, take_handed_over
    from host.signals import hold_signals
    from protocol.process.events import open_event_log

    events = open_event_log(arguments.events, time.monotonic)
    guard_mappings()
    _share_the_interpreter()
    number = build_version(version(), f"{DISTRIBUTION} {version()}")
    status = DaemonStatus(
        lambda: events.broken,
        socket_path=None if arguments.socket_path is None else str(arguments.socket_path),
        discard=options.device.discard,
        offered=feature_names(options.device.features),
    )
    raise_fd_limit()
    manager, handed_over = ServiceManager(os.environ.get("NOTIFY_SOCKET")), take_handed_over(os.environ)
    with contextlib.closing(events), contextlib.closing(manager), _recording(arguments, handed_over) as recording:
        machines: Machines
        if zygote is None:
            machines = _sessions(options, events, recording, number, status)
        else:
            from host.supervisor import Supervisor

            relay = None if recording is None else _relay(recording)
            machines = Supervisor(zygote, arguments.workers, events, number, status, manager, handed_over, relay)
        listeners = Listeners(manager, handed_over)
        serving = Daemon(options, events, machines, number, status, manager, listeners)
        with contextlib.closing(serving) as daemon, asyncio.Runner() as runner:

            def leave_at_once() -> NoReturn:
                daemon.close()
                _leave_threads_behind()

            daemon.on_overdue = leave_at_once
            runner.get_loop()  # before there is a coroutine that would be left unawaited if there are no descriptors
            runner.run(daemon.run())
            hold_signals()  # one more must not cut the end short
            if machines.held_up:
                daemon.close()
                events.close()
                if recording is not None:
                    recording.close()
                _leave_threads_behind()
    return 0


def _sessions(
    options: DaemonOptions,
    events: "EventLog",
    recording: "RecordingFile | None",
    number: Mapping[str, Any],
    status: "DaemonStatus",
) -> "Machines":
    from host.sessions import Sessions  # late: a supervisor has no use for it

    return Sessions(options, events, None if recording is None else recording.write, number, status)


def _relay(recording: "RecordingFile") -> "RecordingRelay":
    from host.recording.recording_relay import RecordingRelay  # late: few record, and it takes long to load

    return RecordingRelay(recording)


def _recording(
    arguments: argparse.Namespace, handed_over: "HandedOver"
) -> "AbstractContextManager[RecordingFile | None]":
    if arguments.record is None:
        return contextlib.nullcontext()
    from host.vm_store.vm_store import number_in
    from protocol.process.recording_file import open_recording

    goes_on = any(number_in(name) is not None for name in handed_over.names)
    program = f"{PROGRAM} {version()}"
    recording = open_recording(arguments.record, program, arguments.record_limit, goes_on=goes_on)
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
    # nor by full collections, which stop all threads while they traverse every object. What is loaded by now stays
    # anyway. A session that has ended is some hundred objects in cycles: to collect seldom is to collect many of them
    # at once (165 ms after a thousand sessions), so that the usual pace is kept.
    gc.freeze()
    gc.enable()


def _ask(words: Sequence[str]) -> int:
    from host.qmp.ask import ask, parse_arguments

    gc.enable()
    if len(words) < 2:
        raise UsageError("--ask needs the PATH of a control socket and a COMMAND, for example query-vms")
    path, command, *arguments = words
    print(json.dumps(ask(path_option(path), command, parse_arguments(arguments)), indent=2))
    return 0


def _start_zygote(arguments: argparse.Namespace) -> "Zygote":
    from host.supervision.zygote import start_zygote

    def prepare() -> "Confine":
        from host.qmp.qmp import build_version
        from host.sandbox.seccomp import prepare_filter
        from host.worker import confine_worker

        prepare_filter()
        logging.getLogger().setLevel(_log_level(arguments))
        options, number = _options(arguments, sockets=False), build_version(version(), f"{DISTRIBUTION} {version()}")
        return partial(confine_worker, options, number, events=arguments.events is not None)

    return start_zygote(prepare)


def _is_kept(keeper: Path) -> bool:
    # Whether this process is the one that the keeper has started. A zygote that was started anew is too.
    return os.environ.get("NOTIFY_SOCKET") == os.fspath(keeper)


def _keep(arguments: argparse.Namespace) -> int:
    from host.peers.fd_limit import raise_fd_limit
    from host.service_manager.keeper import KEPT_SIGNALS, keep, say_on_standard_error
    from host.supervision.process_title import set_title
    from protocol.process.stray_signals import ignore_stray_signals

    gc.enable()
    ignore_stray_signals(KEPT_SIGNALS)
    _check_combinations(arguments)
    raise_fd_limit()
    set_title("vub keeper", f"{DISTRIBUTION}: keeper")
    formatter = make_formatter(PROGRAM, arguments.log_format, journal=is_journal(sys.stderr, os.environ))

    def say(line: str) -> None:
        record = logging.LogRecord(PROGRAM, logging.WARNING, "", 0, line, None, None)
        say_on_standard_error(formatter.format(record))

    return keep(arguments.keeper, say)


def _log_level(arguments: argparse.Namespace) -> int:
    return LEVELS[arguments.log_level or ("info" if arguments.verbose else "warning")]


def run(words: Sequence[str]) -> int:
    """Run the daemon with these options; return the exit status: 0 after SIGTERM, 1 for a failure, 2 for a usage
    error."""
    arguments = make_parser().parse_args(words)
    if arguments.ask is not None:
        return run_command(PROGRAM, lambda: _ask(arguments.ask))
    if arguments.keeper is not None and not _is_kept(arguments.keeper):
        return run_command(PROGRAM, lambda: _keep(arguments))
    zygote = None if arguments.workers is None else _start_zygote(arguments)  # before the first thread
    journal = is_journal(sys.stderr, os.environ)
    logging.getLogger().setLevel(_log_level(arguments))
    with queued_standard_error(PROGRAM):
        log_to_standard_error(PROGRAM, arguments.log_format, journal=journal)
        return run_command(PROGRAM, lambda: _run(arguments, zygote))
