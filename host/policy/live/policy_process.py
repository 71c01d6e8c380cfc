"""A user's own policy in a process of its own: whatever its code does to that process, the run goes on.

The process runs this module. It gets the policy's name and parameters, answers with ``(True, None)``, and then each
observation with the decision: pickles, each after its length in four bytes. Its standard output is standard error, as
the run's may be a stream of events. It ends with the process that asks.
"""

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any, Final

from host.policy.observation import Observation
from host.policy.parameters import Value
from host.policy.policy import Decision, Policy
from host.policy.registry import make_policy

ANSWER_SECONDS: Final = 10.0
"""In which a policy has to decide. After that its process is ended, and begun anew at the next decision."""

STARTS: Final = 4
"""How often a process is begun at most. The policy of a new one remembers nothing."""

_LENGTH: Final = struct.Struct("<I")
_LOOK_SECONDS: Final = 0.5


class PolicyEndedError(Exception):
    """The process of a policy gives no answer any more."""


def policy_for_run(name: str, parameters: Mapping[str, Value]) -> Policy:
    """Return a new policy as :func:`host.policy.registry.make_policy` does; a user's own has a process of its own.

    Raises:
        UsageError: as there.
    """
    policy = make_policy(name, parameters)
    return policy if ":" not in name else PolicyProcess(name, parameters, policy)


class PolicyProcess:
    """A policy whose decisions another process makes. ``made`` is one like it, of which the name and interval count."""

    def __init__(self, policy: str, parameters: Mapping[str, Value], made: Policy) -> None:
        self.name = made.name
        self.interval = made.interval
        self._asked = (policy, dict(parameters))
        self._starts = 0
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._why = ""

    def decide(self, seen: Observation) -> Decision:
        """Return what the policy decides.

        Raises:
            PolicyEndedError: its process has ended, or does not answer.
            Exception: what it raises.
        """
        if self._socket is None:
            self._start()
        is_answer, answer = self._ask(seen)
        if not is_answer:
            raise answer
        decision: Decision = answer  # whoever asks looks whether it is one
        return decision

    def _start(self) -> None:
        if self._starts == STARTS:
            raise PolicyEndedError(f"its process is not begun again: {self._why}")
        self._starts += 1
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "host.policy.live.policy_process", str(theirs.fileno())]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()], env=environment
            )
        self._socket = ours
        weakref.finalize(self, _end, ours, self._process)
        is_made, problem = self._ask(self._asked)
        if not is_made:
            raise problem

    def _ask(self, question: object) -> Any:
        sock, process = self._socket, self._process
        assert sock is not None
        assert process is not None
        try:
            _send(sock, question)
            return _receive(sock, process.pid, ANSWER_SECONDS)
        except (OSError, EOFError, TimeoutError) as error:
            self._socket = None
            if isinstance(error, TimeoutError):
                self._why = f"no answer within {ANSWER_SECONDS:g} s"
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)  # it may have closed the socket, and go on
                status = process.poll()
                self._why = "its process closed the way to it" if status is None else f"its process {_ended(status)}"
            _end(sock, process)
            raise PolicyEndedError(self._why) from None


def _ended(status: int) -> str:
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"


def _end(sock: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    sock.close()
    process.kill()
    process.wait()


def _send(sock: socket.socket, value: object) -> None:
    data = pickle.dumps(value)
    sock.sendall(_LENGTH.pack(len(data)) + data)


def _receive(sock: socket.socket, pid: int, seconds: float) -> Any:
    # What the process has forked may hold the socket open after its end, so that is looked at, too.
    end = time.monotonic() + seconds
    pidfd = os.pidfd_open(pid)
    try:

        def take(count: int) -> bytes:
            data = b""
            while len(data) < count:
                ready, _, _ = select.select([sock.fileno(), pidfd], [], [], max(0.0, end - time.monotonic()))
                if not ready:
                    raise TimeoutError
                if sock.fileno() not in ready:
                    raise EOFError
                piece = sock.recv(count - len(data))
                if not piece:
                    raise EOFError
                data += piece
            return data

        return pickle.loads(take(_LENGTH.unpack(take(_LENGTH.size))[0]))
    finally:
        os.close(pidfd)


# -- the process ------------------------------------------------------------------------------------------------------


def _end_with(parent: int) -> None:
    # A signal at the parent's death would come at the death of the thread that began this process.
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(0)


def main(fd: int) -> None:
    """Be the process: decide for what asks at the other end of ``fd``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends it
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sock, own = socket.socket(fileno=fd), os.getpid()
    policy: Policy | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            question = _receive(sock, own, float(1 << 20))
            answer: tuple[bool, object]
            try:
                if policy is None:
                    policy, answer = make_policy(*question), (True, None)
                else:
                    answer = (True, policy.decide(question))
            except (Exception, SystemExit) as error:
                answer = (False, error)
            if os.getpid() != own:
                os._exit(0)  # a fork that came back from the policy
            try:
                _send(sock, answer)
            except (pickle.PickleError, TypeError, AttributeError):
                _send(
                    sock, (False, TypeError(f"it gave an object of {type(answer[1]).__name__}, which is no decision"))
                )


if __name__ == "__main__":
    main(int(sys.argv[1]))
