"""The command line of the trials with QEMU."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from guest.linux.kernel_log import kernel_warnings
from host.qmp.qmp_client import QmpClient
from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import Parser, option_type, path_option, run_command
from protocol.units import MIB
from scripts.child_processes import Children, python_module
from scripts.emulator.command import DEVICE, OLDEST, MachinePlan, Poison, command_line
from scripts.emulator.kernel import GuestKernel, KernelPackage, build_initrd, locate_kernel
from scripts.emulator.machine import EmulatedMachine, check_qemu
from scripts.emulator.poison_trials import PATTERN_TRIALS
from scripts.emulator.results import Result, as_dict, table_lines
from scripts.emulator.trials import TRIALS, Scene, boot
from scripts.stop_signals import signals_as_exceptions

PROGRAM: Final = "balloon-qemu"
QEMU: Final = "qemu-system-x86_64"
MEMORY: Final = 512 * MIB

_EPILOG: Final = f"""\
One guest is started for each ring format and taken through all trials: {", ".join(name for name, _ in TRIALS)}.
The kernel is Debian's for virtual machines. Its package is fetched once into $XDG_CACHE_HOME or ~/.cache; this does not
need root.

exit status: 0 if every trial passed, 1 if not, 2 for a usage error, 130 after Ctrl-C

examples:
  scripts/qemu
  scripts/qemu --qemu ~/qemu/build/{QEMU} --ring packed --json result.json
  scripts/qemu --features indirect=off,event-idx=off
  scripts/qemu --poison pattern
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description=f"Tries every feature of the balloon with a Linux guest of QEMU ({OLDEST[0]}.{OLDEST[1]} or newer, "
        f"with {DEVICE}), and prints a table of what worked.",
        epilog=_EPILOG,
    )
    path = option_type(path_option)
    parser.add_argument("--qemu", metavar="PATH", type=path, help=f"the QEMU to run (default: {QEMU} on PATH)")
    parser.add_argument("--ring", choices=("split", "packed"), help="try this ring format only (default: both)")
    parser.add_argument(
        "--accelerator",
        choices=("tcg", "kvm"),
        default="tcg",
        help="run the guest with this accelerator (default: %(default)s)",
    )
    parser.add_argument("--features", metavar="LIST", help="pass further features to the daemon, as in its --features")
    parser.add_argument(
        "--poison",
        choices=[each.value for each in Poison],
        help="have the guest fill its free pages with a pattern (then nothing may be discarded) or with zeros",
    )
    parser.add_argument("--kernel", metavar="PATH", type=path, help="use this kernel image; needs --modules")
    parser.add_argument("--modules", metavar="DIR", type=path, help="its modules, at any depth below DIR")
    parser.add_argument("--json", metavar="PATH", help="write the results as JSON to PATH, - for standard output")
    parser.add_argument("--keep", metavar="DIR", type=path, help="keep the console logs and events of the runs in DIR")
    return parser


def _say(line: str) -> None:
    if line:
        print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


def _find_qemu(given: Path | None) -> Path:
    found = shutil.which(str(given or QEMU))
    if found is None:
        raise BalloonError(
            f"{given or QEMU} was not found: QEMU {OLDEST[0]}.{OLDEST[1]} or newer is needed on PATH, or by --qemu PATH"
        )
    return Path(found).absolute()


def run_trials(plan: MachinePlan, features: str | None) -> Iterator[Result]:
    """Boot one guest and yield the results as they come.

    ``features`` are for the daemon, in addition to those that are always tried. A trial that fails does not end the
    run, unless the guest has ended.
    """
    ring = "packed" if plan.packed else "split"
    events = plan.directory / "daemon.jsonl"
    options = ["--socket-path", str(plan.socket_path), "--control", str(plan.control), "--events", str(events)]
    tried = f"packed={'on' if plan.packed else 'off'},free-page-hint=on"
    if plan.poison is not None:
        tried += ",page-poison=on"
    options += ["--features", tried if features is None else f"{tried},{features}"]
    with Children(plan.directory) as children:
        daemon = children.start("vhost-user-balloon", python_module("host", *options), events.name)
        daemon.wait_for_event("listening")
        child = children.start("QEMU", command_line(plan), "qemu.jsonl")
        with QmpClient(plan.control) as control, EmulatedMachine(plan, child) as machine:
            scene = Scene(machine, daemon, control, plan.packed)
            for name, trial in PATTERN_TRIALS if plan.poison is Poison.PATTERN else TRIALS:
                begin = time.monotonic()
                try:
                    passed, note = True, trial(scene)
                except BalloonError as error:
                    passed, note = False, str(error)
                yield Result(ring=ring, trial=name, passed=passed, note=note, seconds=time.monotonic() - begin)
                if child.ended() or (trial is boot and not passed):
                    return
            warnings = kernel_warnings(plan.console.read_text(encoding="utf-8", errors="replace"))
            note = warnings[0] if warnings else "no warning in the kernel's log"
            yield Result(ring=ring, trial="log", passed=not warnings, note=note, seconds=0.0)


def _run_all(arguments: argparse.Namespace, qemu: Path, kernel: GuestKernel, directory: Path) -> list[Result]:
    initrd = directory / "initrd"
    initrd.write_bytes(build_initrd(kernel))
    results: list[Result] = []
    for ring in (arguments.ring,) if arguments.ring else ("split", "packed"):
        (directory / ring).mkdir()
        plan = MachinePlan(
            qemu=qemu,
            accelerator=arguments.accelerator,
            memory=MEMORY,
            packed=ring == "packed",
            kernel=kernel.image,
            initrd=initrd,
            socket_path=directory / ring / "balloon.sock",
            directory=directory / ring,
            poison=None if arguments.poison is None else Poison(arguments.poison),
        )
        for result in run_trials(plan, arguments.features):
            _say(f"{result.ring} {result.trial}: {'ok' if result.passed else 'FAILED'}: {result.note}")
            results.append(result)
    return results


def _run(arguments: argparse.Namespace) -> int:
    if (arguments.kernel is None) != (arguments.modules is None):
        raise UsageError("--kernel and --modules go together")
    qemu = _find_qemu(arguments.qemu)
    version = check_qemu(qemu)
    # Debian's kernel for virtual machines is built without page poisoning.
    package = KernelPackage.GENERAL if arguments.poison == Poison.PATTERN else KernelPackage.CLOUD
    kernel = locate_kernel(arguments.kernel, arguments.modules, package, _say)
    with tempfile.TemporaryDirectory(prefix="balloon-qemu-", ignore_cleanup_errors=True) as scratch:
        directory = Path(scratch) if arguments.keep is None else arguments.keep
        directory.mkdir(parents=True, exist_ok=True)
        results = _run_all(arguments, qemu, kernel, directory)
    print(version, *table_lines(results), sep="\n", file=sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.json is not None:
        text = json.dumps(as_dict(version, results), indent=2) + "\n"
        if arguments.json == "-":
            print(text, end="")
        else:
            Path(arguments.json).write_text(text, encoding="utf-8")
    failed = [one for one in results if not one.passed]
    if failed:
        raise BalloonError(f"{len(failed)} of {len(results)} trials failed")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trials; return the exit status: 0 if every trial passed, 1 if not, 2 for a usage error."""
    arguments = make_parser().parse_args(argv)
    with signals_as_exceptions():
        return run_command(PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
