"""Any observation, any policy: the answer is a decision that may be carried out."""

from hypothesis import given, note
from hypothesis import strategies as st

from host.policy.contained import ContainedPolicy
from host.policy.observation import HostView, Observation, VmView
from host.policy.policy import Decision, Policy
from host.policy.registry import POLICIES, make_policy
from host.policy.vm_memory import most_balloon
from protocol.units import TIB
from tests.host.policy.observations import balloons, check

SIZE = st.integers(0, 4 * TIB)
STATISTIC = st.none() | SIZE
TOTAL = st.integers(0, 1 << 64)


@st.composite
def machines(draw: st.DrawFn, name: str) -> VmView:
    memory = draw(st.sampled_from((0, 1, 4096, 1 << 20, 128 << 20, 1 << 30)) | SIZE)
    return VmView(
        name=name,
        memory_bytes=memory,
        balloon_bytes=draw(st.integers(0, 2 * memory)),
        target_bytes=draw(st.integers(0, 2 * memory)),
        total_bytes=draw(STATISTIC),
        free_bytes=draw(STATISTIC),
        available_bytes=draw(STATISTIC),
        cache_bytes=draw(STATISTIC),
        statistics_age=draw(st.none() | st.floats(0, 1e6)),
        host_backed_bytes=draw(STATISTIC),
        refaulted_bytes=draw(TOTAL),
        major_faults=draw(st.none() | TOTAL),
        minor_faults=draw(st.none() | TOTAL),
        swapped_in_bytes=draw(st.none() | TOTAL),
        swapped_out_bytes=draw(st.none() | TOTAL),
        stall_seconds=draw(st.floats(0, 1e9)),
        age=draw(st.floats(0, 1e9)),
    )


@st.composite
def runs(draw: st.DrawFn) -> list[Observation]:
    """A few observations one after the other, of machines that come and go."""
    now, seen = draw(st.floats(0, 1e6)), []
    for _ in range(draw(st.integers(1, 4))):
        names = draw(st.lists(st.sampled_from("abcd"), unique=True))
        host = HostView(budget_bytes=draw(SIZE), used_bytes=draw(SIZE), pressure=draw(st.none() | st.floats(0, 100)))
        seen.append(Observation(now=now, host=host, vms={name: draw(machines(name)) for name in names}))
        now += draw(st.sampled_from((0.0, 2.0, 30.0, 150.0)) | st.floats(0, 1e5))
    return seen


@given(run=runs())
def test_decisions_may_be_carried_out(run: list[Observation]) -> None:
    for name in POLICIES:
        note(name)
        policy, twin = make_policy(name), make_policy(name)
        for observed in run:
            decision = policy.decide(observed)
            check(decision, observed)
            assert twin.decide(observed) == decision  # the same views, the same decision


class Scripted:
    """A policy that answers what it is given."""

    name = "scripted"
    interval = 1.0

    def __init__(self, *answers: Decision) -> None:
        self.answers = list(answers)

    def decide(self, seen: Observation) -> Decision:
        return self.answers.pop(0)


@given(run=runs(), data=st.data())
def test_fence_lets_no_machine_below_the_reserve(run: list[Observation], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(POLICIES)))
    policy: Policy = make_policy(name)
    answers = [policy.decide(observed) for observed in run]
    lines: list[str] = []
    fence = ContainedPolicy(Scripted(*answers[:-1]), lines.append)  # the last one is missing: it raises
    record = None
    for observed in run:
        record = fence.decide(observed)
        for vm, size in balloons(Decision(record.actions)).items():
            assert 0 <= size <= most_balloon(observed.vms[vm])
    assert len(lines) == 1
    assert record is not None
    assert record.problem == "IndexError: pop from empty list"
