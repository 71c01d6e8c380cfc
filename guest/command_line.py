"""The options of ``balloon-guest``, and the machine that they describe."""

import argparse
from pathlib import Path
from typing import Final

from guest.balloon.initialised_pages import DRAFTS
from guest.linux_profile import LINUX_7_2, PROFILES
from guest.mm.views.vmstat import VIEWS
from guest.mm.x86.pci_hole import PCI_HOLES, pci_hole_of_size
from guest.virtqueue.ring_memory import QUEUE_SIZE, RingOptions
from guest.vmm_options import ONE_ZONE, X86_64_ZONES, VmmOptions
from guest.workloads.in_turn import InTurn
from guest.workloads.memhog import Idle
from guest.workloads.workload import Workload
from guest.workloads.workload_options import WORKLOAD_HELP, parse_workload
from protocol.errors import BalloonError, UsageError
from protocol.memory import PAGE_SIZE
from protocol.process.command_line import Parser, option_type, path_option, whole_number
from protocol.units import GIB, parse_size
from protocol.virtio import feature_mask

MEMORY_MIN: Final = 16 << 20
MEMORY_MAX: Final = 16 << 40
"""Limits of the machine's memory, in bytes."""
CPUS_MAX: Final = 1024
INTERVAL_LEAST: Final = 0.05
"""Seconds between two maps of the memory, at least."""

_EPILOG: Final = """\
example:
  vhost-user-balloon --socket-path /tmp/balloon.sock                              (in a first terminal)
  balloon-guest --socket-path /tmp/balloon.sock --memory 1G --workload memhog:size=800M,hold=2 --events -

  balloon-guest ... --control /tmp/guest.ctl     and later, elsewhere:  balloon-guest --ask /tmp/guest.ctl pagetypeinfo

"""
_SIGNALS: Final = "\nSIGUSR1 prints the guest's buddyinfo.\n"


def _pages(text: str) -> int:
    size = parse_size(text)
    if size % PAGE_SIZE:
        raise UsageError(f"{text!r} is not a whole number of {PAGE_SIZE}-byte pages")
    return size


def _memory(text: str) -> int:
    size = _pages(text)
    if not MEMORY_MIN <= size <= MEMORY_MAX:
        raise UsageError(f"{text!r} is not from {MEMORY_MIN >> 20}M to {MEMORY_MAX >> 40}T")
    return size


def _pci_hole(text: str) -> str | int:
    if text in PCI_HOLES:
        return text
    size = parse_size(text)
    pci_hole_of_size(size)  # refuses an impossible one
    return size


def _byte(text: str) -> int:
    byte = int(text, 0)
    if not 0 <= byte <= 0xFF:
        raise UsageError(f"{text!r} is not from 0 to 0xff")
    return byte


def _interval(text: str) -> float:
    seconds = float(text)
    if not INTERVAL_LEAST <= seconds < float("inf"):
        raise UsageError(f"{text} is not a number of seconds from {INTERVAL_LEAST} on")
    return seconds


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{text!r} is not a number of seconds")
    return seconds


def _add_reporting(parser: argparse.ArgumentParser) -> None:
    reporting = parser.add_argument_group("free page reporting")
    reporting.add_argument(
        "--reporter",
        choices=("boundary", "rotation", "scan", "off"),
        default="boundary",
        help="boundary: the 2019 design with its reported boundary (default); rotation: as merged in Linux; "
        "scan: the 2019 design without a boundary; off: none",
    )
    reporting.add_argument("--reporting-order", metavar="N", type=int, help="least order reported (default: 9)")
    reporting.add_argument(
        "--reporting-delay", metavar="S", type=option_type(_seconds), help="seconds (default: 0.1; rotation: 2)"
    )
    reporting.add_argument(
        "--reporting-capacity", metavar="N", type=int, help="blocks in one report (default: 16; rotation: 32)"
    )
    reporting.add_argument(
        "--high-water-mark",
        metavar="N",
        type=int,
        help="unreported blocks that start a pass (default: 32; not for rotation)",
    )


def _add_layout(parser: argparse.ArgumentParser) -> None:
    layout = parser.add_argument_group("how memory is laid out")
    layout.add_argument(
        "--zones",
        choices=(ONE_ZONE, X86_64_ZONES),
        help="one: all memory is Normal; x86-64: DMA, DMA32 and Normal as on a real machine "
        "(default: one; x86-64 where --buddyinfo has several zones)",
    )
    layout.add_argument(
        "--pci-hole",
        metavar="|".join((*PCI_HOLES, "SIZE")),
        type=option_type(_pci_hole),
        help="hole in memory below 4 GiB, as QEMU's machines have it, or of SIZE; needs --zones x86-64 "
        "(default: none, or the smallest with which --buddyinfo fits)",
    )
    layout.add_argument(
        "--kernelcore", metavar="SIZE", type=option_type(_pages), help="make what is beyond SIZE a Movable zone"
    )
    layout.add_argument(
        "--cma", metavar="SIZE", type=option_type(_pages), default=0, help="contiguous memory area (default: none)"
    )
    layout.add_argument(
        "--cpus",
        metavar="N",
        type=whole_number(0, CPUS_MAX),
        default=0,
        help="N CPUs with page lists of their own, over which tasks are spread (default: no such lists)",
    )
    layout.add_argument(
        "--page-poison",
        metavar="BYTE",
        type=option_type(_byte),
        help="free pages hold this byte: 0 as with init_on_free, 0xaa as with page_poisoning (default: anything)",
    )
    layout.add_argument("--shuffle", action="store_true", help="shuffle free memory at boot, by --seed")


def _add_virtqueues(parser: argparse.ArgumentParser) -> None:
    rings = parser.add_argument_group("the device's virtqueues")
    rings.add_argument("--ring", choices=("split", "packed"), default="split", help="format (default: split)")
    rings.add_argument(
        "--queue-size",
        metavar="N",
        type=int,
        default=QUEUE_SIZE,
        help=f"entries, up to 32768; a power of two if split (default: {QUEUE_SIZE})",
    )
    for option, default, said, what in (
        ("--indirect", None, "off; with --profile 6.1 on", "one indirect table for a request of more than one buffer"),
        ("--event-idx", "on", "on", "kicks and interrupts only where the other side is to be woken"),
        ("--in-order", "off", "off", "the device uses buffers in the order in which they were made available"),
    ):
        rings.add_argument(option, choices=("on", "off"), default=default, help=f"{what} (default: {said})")
    rings.add_argument(
        "--notify",
        choices=("eventfd", "in-band"),
        default="eventfd",
        help="how kicks and interrupts travel: eventfd (default), or as messages of the session",
    )
    rings.add_argument(
        "--draft",
        choices=tuple(DRAFTS),
        action="append",
        default=[],
        help="accept this feature of a draft of the specification if it is offered: the device says which reported or "
        "inflated pages read as zeros, and these are not cleared again (repeatable)",
    )
    rings.add_argument(
        "--reconnect",
        choices=("fresh", "resume"),
        default="fresh",
        help="when a back-end is gone: begin with empty rings at the next (default), or have it resume the old ones",
    )


def _add_watching(parser: argparse.ArgumentParser) -> None:
    watch = parser.add_argument_group("watching")
    watch.add_argument("--events", metavar="PATH", help="append one JSON object a line to PATH, - for standard output")
    watch.add_argument(
        "--ledger",
        action="store_true",
        help="memory events say what holds each free byte that the host still backs",
    )
    watch.add_argument(
        "--memory-map",
        metavar="SECONDS",
        type=option_type(_interval),
        help="emit an event so often with a map of the memory: free, reported, in the balloon, backed by the host",
    )
    watch.add_argument(
        "--print",
        choices=tuple(VIEWS),
        dest="views",
        action="append",
        default=[],
        help="print this view of memory at the end (repeatable)",
    )
    watch.add_argument(
        "--control",
        metavar="PATH",
        type=option_type(path_option),
        help="answer at this socket: one line with a view's name, stop, cont, reset or help",
    )
    watch.add_argument(
        "--ask",
        metavar=("PATH", "VIEW"),
        nargs=2,
        help="no guest: print the VIEW of the one with --control PATH; stop, cont, reset: its device",
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="balloon-guest",
        description="An emulated virtual machine with a buddy allocator that reports its free pages to a vhost-user "
        "balloon back-end.",
        epilog=_EPILOG + WORKLOAD_HELP + _SIGNALS,
    )
    parser.add_argument(
        "--socket-path", metavar="PATH", type=option_type(path_option), help="where the back-end listens"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", type=option_type(_memory), default=GIB, help="guest memory (default: 1G)"
    )
    parser.add_argument(
        "--profile",
        choices=tuple(PROFILES),
        default=LINUX_7_2.name,
        help="release of Linux whose driver and allocator are followed: which statistics, whether indirect tables and "
        "small reporting queues, how types of memory take from each other (default: 7.2)",
    )
    _add_layout(parser)
    parser.add_argument(
        "--buddyinfo",
        metavar="FILE",
        type=option_type(path_option),
        help="begin with the free blocks that FILE shows, a copy of another machine's /proc/buddyinfo",
    )
    _add_reporting(parser)
    _add_virtqueues(parser)
    work = parser.add_argument_group("what the guest does")
    work.add_argument(
        "--workload",
        metavar="NAME[:key=value,...]",
        type=option_type(parse_workload),
        action="append",
        default=[],
        help="see below (default: idle)",
    )
    work.add_argument("--in-turn", action="store_true", help="one workload after the other (default: all at once)")
    work.add_argument("--seed", metavar="N", type=int, default=0, help="seed of random workloads (default: 0)")
    work.add_argument("--duration", metavar="S", type=option_type(_seconds), help="stop the workloads after S seconds")
    work.add_argument("--hold", action="store_true", help="stay attached when the workloads are done")
    work.add_argument(
        "--record",
        metavar="FILE",
        type=option_type(path_option),
        help="write down every allocation, for --workload trace:FILE to replay",
    )
    _add_watching(parser)
    return parser


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise UsageError(f"--buddyinfo {path}: {error}") from error
    except OSError as error:
        raise BalloonError(f"--buddyinfo {path}: {error.strerror}") from error


def _workloads(arguments: argparse.Namespace) -> tuple[Workload, ...]:
    workloads: tuple[Workload, ...] = tuple(arguments.workload) or (Idle(),)
    return (InTurn(workloads),) if arguments.in_turn else workloads


def vmm_options(arguments: argparse.Namespace) -> VmmOptions:
    """Return the machine that the parsed ``arguments`` describe; a file given with --buddyinfo is read here.

    Raises:
        UsageError: options that contradict each other.
        BalloonError: the file cannot be read.
    """
    constants = (arguments.reporting_order, arguments.reporting_delay, arguments.reporting_capacity)
    if arguments.reporter == "off" and any(value is not None for value in (*constants, arguments.high_water_mark)):
        raise UsageError("--reporter off has no constants")
    byte = arguments.page_poison
    profile = PROFILES[arguments.profile]
    return VmmOptions(
        socket_path=arguments.socket_path,
        memory=arguments.memory,
        buddyinfo=None if arguments.buddyinfo is None else _read(arguments.buddyinfo),
        zones=arguments.zones,
        pci_hole=arguments.pci_hole,
        kernelcore=arguments.kernelcore,
        cma=arguments.cma,
        cpus=arguments.cpus,
        shuffle=arguments.shuffle,
        reporter=arguments.reporter,
        reporting_order=arguments.reporting_order,
        reporting_delay=arguments.reporting_delay,
        reporting_capacity=arguments.reporting_capacity,
        high_water_mark=arguments.high_water_mark,
        workloads=_workloads(arguments),
        seed=arguments.seed,
        profile=profile,
        duration=arguments.duration,
        hold=arguments.hold,
        views=tuple(arguments.views),
        ledger=arguments.ledger,
        memory_map=arguments.memory_map,
        control=arguments.control,
        record=arguments.record,
        ring=RingOptions(
            size=arguments.queue_size,
            packed=arguments.ring == "packed",
            indirect=profile.indirect if arguments.indirect is None else arguments.indirect == "on",
            event_idx=arguments.event_idx == "on",
            in_order=arguments.in_order == "on",
        ),
        page_poison=None if byte is None else byte * 0x0101_0101,  # poison_val has 32 bits; the kernel's is a byte
        draft=feature_mask(*(DRAFTS[name] for name in arguments.draft)),
        in_band=arguments.notify == "in-band",
        resume=arguments.reconnect == "resume",
    )
