"""Idle machines in a process of their own: one process may have 256 sessions.

Run as a program with a socket path, a number of machines and their size in bytes, it connects them, reports one page of
each, says ``ready`` and waits until its standard input ends.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from host.peers.fd_limit import raise_fd_limit
from protocol.memory import PAGE_SIZE
from protocol.units import GIB
from scripts.benchmarks.figures import BenchmarkError
from scripts.benchmarks.process import end_process
from scripts.benchmarks.rig import Machine
from scripts.child_processes import module_environment, python_module

PROCESS_MACHINES: Final = 200


@contextmanager
def idle_machines(socket_path: Path, count: int, size: int = GIB) -> Iterator[None]:
    """Have ``count`` machines of ``size`` bytes connected to the daemon, as long as the context lasts."""
    with ExitStack() as stack:
        for begin in range(0, count, PROCESS_MACHINES):
            numbers = map(str, (min(PROCESS_MACHINES, count - begin), size))
            process = subprocess.Popen(
                python_module(__name__, str(socket_path), *numbers),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=module_environment(),
                text=True,
            )
            stack.callback(end_process, process)
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchmarkError("the idle machines have died")
        yield


def main(socket_path: str, *numbers: str) -> None:
    """Be the machines until standard input ends."""
    raise_fd_limit()
    count, size = map(int, numbers)
    with ExitStack() as stack:
        for _ in range(count):
            machine = stack.enter_context(Machine(Path(socket_path), size))
            machine.report([(0, PAGE_SIZE)])  # an idle machine has usually been at work before
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
