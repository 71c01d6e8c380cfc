"""Hostile sessions are the same each time, and all acts, stages and ends come up."""

import contextlib
import socket
import threading
from random import Random

from scripts.check.hostile.acts.all_acts import ALL_ACTS
from scripts.check.hostile.acts.attack import Attack, Gone, Stage
from scripts.check.hostile.session import End, Plan, plan_of
from scripts.check.machine.connection import FrontendConnection


def test_plan_depends_on_seed_and_number_alone() -> None:
    assert plan_of(7, 12) == plan_of(7, 12)
    assert str(plan_of(7, 12)) == str(plan_of(7, 12))
    assert len({str(plan_of(seed, 12)).partition(" ")[2] for seed in range(50)}) > 40


def test_everything_comes_up() -> None:
    plans = [plan_of(1, number) for number in range(1, 601)]
    assert {name for plan in plans for name in plan.acts} == ALL_ACTS.keys()
    assert {plan.stage for plan in plans} == set(Stage)
    assert {plan.end for plan in plans} == set(End)
    assert {plan.packed for plan in plans} == {plan.sealed for plan in plans} == {True, False}
    assert all(ALL_ACTS[name].stage <= plan.stage for plan in plans for name in plan.acts)


def sent_by(plan: Plan) -> bytes:
    """Return what the acts of a session send to a peer that reads and never answers."""
    ours, theirs = socket.socketpair()
    got: list[bytes] = []

    def read() -> None:
        while data := theirs.recv(1 << 16):
            got.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    attack = Attack(Random(plan.seed), plan.stage, FrontendConnection(ours), None)
    with contextlib.suppress(Gone):
        for name in plan.acts:
            ALL_ACTS[name].do(attack)
    ours.shutdown(socket.SHUT_WR)
    reader.join()
    attack.close()
    theirs.close()
    return b"".join(got)


def test_session_sends_the_same_each_time() -> None:
    plans = [plan_of(3, number) for number in range(1, 300)]
    plans = [plan for plan in plans if plan.stage is Stage.CONNECTED][:20]
    first = [sent_by(plan) for plan in plans]
    assert all(first)
    assert first == [sent_by(plan) for plan in plans]


def test_every_act_says_what_it_does() -> None:
    assert all(act.do.__doc__ and act.do.__doc__.strip().endswith(".") for act in ALL_ACTS.values())
