"""What a case of a device is given, and the suite that the cases belong to."""

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

from protocol.errors import BalloonError
from scripts.check.machine.machine import Device, Machine
from scripts.check.machine.vhost_user_device import VhostUserDevice, VhostUserMachine
from scripts.check.ring_clauses import blaming_format, of_format
from scripts.check.suite import CaseFunction, Suite
from scripts.check.verdict import SURVIVES, Failed, Outcome, TargetError, skip


class Trial:
    """The device under test, for one case. ``packed`` is the ring format that the case is about.

    Machines are taken down with the trial, and each before the next is brought up: a device may serve one at a time.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.packed = False
        self._stack = ExitStack()

    def machine(self, **options: Any) -> Machine:
        """Bring the device up in the trial's ring format: see :meth:`Device.machine`."""
        if how := self.take_down():
            raise TargetError(how)
        options.setdefault("packed", self.packed)
        return self._stack.enter_context(self.device.machine(**options))

    @property
    def vhost_user_device(self) -> VhostUserDevice:
        """The device, for a case that needs vhost-user messages; NOT EXERCISED with another target."""
        if not isinstance(self.device, VhostUserDevice):
            skip("the target is not reached by vhost-user messages")
        return self.device

    def vhost_user(self, **options: Any) -> VhostUserMachine:
        """As :meth:`machine`, with a device that is reached by vhost-user messages: see :attr:`vhost_user_device`."""
        assert self.vhost_user_device is self.device
        machine = self.machine(**options)
        assert isinstance(machine, VhostUserMachine)
        return machine

    def take_down(self) -> str:
        """Take the machine down; return how the device's process ended, "" where it did not."""
        self._stack.close()
        return self.device.how_it_ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def fresh_trial(device: Device) -> Trial:
    """Return the trial of the next case.

    Raises:
        TargetError: the device is gone.
    """
    device.check_reachable()
    return Trial(device)


class DeviceSuite(Suite[Trial]):
    """Cases that end with a look whether the device's process did: what is started again must not hide it."""

    def with_look(self, run: CaseFunction[Trial]) -> CaseFunction[Trial]:
        """Return ``run`` with that look."""
        return _surviving(run)


def _surviving(run: CaseFunction[Trial]) -> CaseFunction[Trial]:
    @functools.wraps(run)
    def run_and_look(trial: Trial) -> None:
        try:
            run(trial)
        except TargetError:
            raise  # which says how it ended
        except (Outcome, BalloonError) as outcome:
            if how := trial.take_down():
                raise Failed(f"{how} ({outcome})", SURVIVES) from outcome
            raise
        if how := trial.take_down():
            raise Failed(how, SURVIVES)

    return run_and_look


SUITE: Final = DeviceSuite("device")
"""The cases of a balloon device. A module of cases adds its own when it is imported: see ``all_cases``."""


def ring_case(
    name: str,
    *,
    clauses: Sequence[str] = (),
    edges: Sequence[int] = (),
    peers: Sequence[str] = (),
    quick: bool = False,
) -> Callable[[CaseFunction[Trial]], CaseFunction[Trial]]:
    """As :meth:`Suite.case`, once for each ring format: the cases are called ``name/split`` and ``name/packed``.

    Clauses of the other format are left out: those of split rings begin with S, those of packed ones with P. A quick
    case is one with the packed ring only if a clause of that format is about it.
    """

    def add(run: CaseFunction[Trial]) -> CaseFunction[Trial]:
        for packed in (False, True):
            mine = of_format(clauses, packed=packed)
            format_name = "packed" if packed else "split"
            soon = quick and (not packed or any(clause.startswith("P-") for clause in mine))
            SUITE.case(f"{name}/{format_name}", clauses=mine, edges=edges, peers=peers, quick=soon)(
                _in_format(blaming_format(run, packed=packed), packed)
            )
        return run

    return add


def _in_format(run: CaseFunction[Trial], packed: bool) -> CaseFunction[Trial]:
    def run_in_format(trial: Trial) -> None:
        trial.packed = packed
        run(trial)

    run_in_format.__doc__ = run.__doc__
    return run_in_format
