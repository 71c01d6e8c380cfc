"""Front-ends that are killed in the middle of a session: after each message, and inside each.

A process of its own: ``python -m tests.harness.dying_client SOCKET``. It forks one front-end after the other; each
carries out a session up to one message and ends by SIGKILL, with reports in flight. Prints the number of front-ends.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringState
from tests.harness.virtual_machine import DATA_AT, MIB, REPORTING, Client, VirtualMachine


class DyingClient(Client):
    """Sends ``messages`` messages whole, then ``extra`` bytes of the next one, and is killed."""

    def __init__(self, path: Path, messages: int, extra: int) -> None:
        super().__init__(path)
        self._messages = messages
        self._extra = extra

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self._messages == 0:
            if self._extra:
                super().send(data[: self._extra], fds)
            os.kill(os.getpid(), signal.SIGKILL)
        self._messages -= 1
        super().send(data, fds)


def live(client: Client) -> None:
    """Carry out a session with everything in it."""
    machine = VirtualMachine(client)
    machine.ram.touch(DATA_AT, 2 * MIB)
    for at in range(DATA_AT, DATA_AT + 2 * MIB, 4 * PAGE_SIZE):
        if machine.reporting.driver.outstanding < 64:
            machine.submit([(at, 2 * PAGE_SIZE)])
    machine.ask(FrontendRequest.SET_VRING_ENABLE, VringState(REPORTING, 0))
    machine.ask(FrontendRequest.SET_VRING_ENABLE, VringState(REPORTING, 1))
    machine.set_memory()
    machine.ask(FrontendRequest.GET_VRING_BASE, VringState(REPORTING, 0))


def main(path: Path) -> None:
    """Let front-ends die one message later each time, until one survives its session."""
    count = messages = 0
    while True:
        for extra in (0, 5, 17):
            count += 1
            child = os.fork()
            if child == 0:
                live(DyingClient(path, messages, extra))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0
                print(count)
                return
        messages += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
