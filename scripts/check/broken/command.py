"""``balloon-check broken``: run each broken device and driver against the cases that have to catch it."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError, UsageError
from protocol.process.listening_socket import ListeningSocket
from scripts.check.broken.device_faults.all_faults import ALL_FAULTS
from scripts.check.broken.devices import serving, try_fault
from scripts.check.broken.driver_fault import DriverFault
from scripts.check.broken.driver_faults.all_driver_faults import ALL_DRIVER_FAULTS
from scripts.check.broken.drivers import driving, try_driver
from scripts.check.broken.fault import Fault
from scripts.check.broken.fence_faults import FENCE_FAULTS, try_fence
from scripts.check.broken.forked_devices import ForkedDevices
from scripts.check.broken.trying import CAUGHT, AnyFault, Trying, line_of, try_until_caught
from scripts.check.listing import print_listing
from scripts.check.names import nearest
from scripts.child_processes import module_environment

AT_ONCE: Final = 2
"""Devices that are tried at a time. Most of the time goes into waiting, but some cases look at times."""

DRIVERS_AT_ONCE: Final = 4


def run(arguments: argparse.Namespace) -> int:
    """Try the faults, list them, or serve one. Return the exit status: 1 if one was not caught."""
    if arguments.serve:
        return _be(
            arguments,
            "--serve",
            "device",
            ALL_FAULTS,
            lambda fault, path: serving(fault.name, "--socket-path", str(path)),
        )
    if arguments.drive:
        return _be(arguments, "--drive", "driver", ALL_DRIVER_FAULTS, driving)
    known = [*ALL_FAULTS, *ALL_DRIVER_FAULTS, *FENCE_FAULTS]
    for name in arguments.faults:
        if name not in known:
            raise UsageError(f"no fault is called {name!r}{nearest([name], known)} (see --list)")
    names = arguments.faults or known
    devices = [ALL_FAULTS[name] for name in names if name in ALL_FAULTS]
    drivers = [ALL_DRIVER_FAULTS[name] for name in names if name in ALL_DRIVER_FAULTS]
    fences = [FENCE_FAULTS[name] for name in names if name in FENCE_FAULTS]
    if arguments.list:
        print_listing(
            f"{fault.name}: {side}\n    {fault.says}\n    [{', '.join(fault.caught_by)}]"
            for side, faults in (("device (--serve)", devices), ("driver (--drive)", drivers))
            for fault in faults
        )
        print_listing(f"{fence.name}: fence\n    {fence.says}\n    [the wake-up model]" for fence in fences)
        return 0
    missed = [trying.fault.name for trying in _try_all(devices, drivers) if not trying.is_caught]
    for fence in fences:
        result = try_fence(fence)
        print(
            f"{'caught' if result.verdict in CAUGHT else 'MISSED'}  {fence.name}\n        {line_of(result)}", flush=True
        )
        missed += [] if result.verdict in CAUGHT else [fence.name]
    print(f"{len(names) - len(missed)} of {len(names)} faults caught")
    if missed:
        raise BalloonError(f"not caught: {', '.join(missed)}")
    return 0


def _be(
    arguments: argparse.Namespace,
    option: str,
    side: str,
    faults: Mapping[str, AnyFault],
    command: Callable[[AnyFault, Path], list[str]],
) -> int:
    # Become the program with the fault that `option` names.
    name = arguments.serve or arguments.drive
    if name not in faults:
        raise UsageError(f"no fault of a {side} is called {name!r}{nearest([name], faults)} (see --list)")
    if arguments.socket_path is None:
        raise UsageError(f"{option} needs --socket-path")
    if arguments.serve:
        try:
            ListeningSocket(arguments.socket_path, "--socket-path").close()
        except BalloonError as error:
            raise UsageError(str(error)) from error
    argv = command(faults[name], arguments.socket_path)
    os.execve(argv[0], argv, module_environment())


def _try_all(devices: Sequence[Fault], drivers: Sequence[DriverFault]) -> Iterator[Trying]:
    # Try each fault and yield what came of it in the end; a line is printed for each. Drivers, which take their time,
    # are tried beside the devices.
    with (
        ForkedDevices() as forked,
        ThreadPoolExecutor(AT_ONCE) as device_pool,
        ThreadPoolExecutor(DRIVERS_AT_ONCE) as driver_pool,
        ExitStack() as unwind,  # after a signal those that have not begun are left out
    ):
        unwind.callback(driver_pool.shutdown, wait=False, cancel_futures=True)
        unwind.callback(device_pool.shutdown, wait=False, cancel_futures=True)
        tried_drivers = driver_pool.map(partial(try_until_caught, try_one=try_driver), drivers)
        tried_devices = device_pool.map(partial(try_until_caught, try_one=partial(try_fault, devices=forked)), devices)
        for trying in chain(tried_devices, tried_drivers):
            print(f"{'caught' if trying.is_caught else 'MISSED'}  {trying.fault.name}", flush=True)
            for one in trying.results:
                print(f"        {line_of(one)}", flush=True)
            if trying.crash:
                print(f"        the fault itself fails: {trying.crash}", flush=True)
            yield trying
