"""What a comparison varies."""

import pytest

from protocol.errors import UsageError
from protocol.units import MIB
from scripts.scenario.compare.variant import variants
from scripts.scenario.scenario import PolicySpec, Scenario, VmKind, VmSpec

SCENARIO = Scenario(
    name="s",
    title="s",
    budget_bytes=256 * MIB,
    duration=10.0,
    vms=(
        VmSpec(name="a", memory_bytes=128 * MIB, reporting={"delay": 1.0}),
        VmSpec(name="b", memory_bytes=128 * MIB, reporter=None),
        VmSpec(name="l", memory_bytes=128 * MIB, kind=VmKind.LINUX),
    ),
    policy=PolicySpec(name="proxmox", parameters={"interval": 5.0}),
)


def test_all_combinations_in_their_order() -> None:
    found = variants(SCENARIO, ["policy=reporting,proxmox", "delay=0.1,2"])
    assert [variant.name for variant in found] == [
        "policy=reporting delay=0.1",
        "policy=reporting delay=2",
        "policy=proxmox delay=0.1",
        "policy=proxmox delay=2",
    ]
    last = found[-1].scenario
    assert last.policy == SCENARIO.policy
    assert found[0].scenario.policy == PolicySpec(name="reporting")
    assert last.vms[0].reporting == {"delay": 2.0}
    assert last.vms[1:] == SCENARIO.vms[1:]


def test_reporter_of_every_machine_but_a_real_kernel() -> None:
    scan, none = (variant.scenario.vms for variant in variants(SCENARIO, ["reporter=scan,none"]))
    assert [vm.reporter for vm in scan] == ["scan", "scan", "boundary"]
    assert [(vm.reporter, dict(vm.reporting)) for vm in none[:2]] == [(None, {}), (None, {})]


def test_without_anything_varied_it_is_the_scenario() -> None:
    (only,) = variants(SCENARIO, [])
    assert only.scenario is SCENARIO


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed=1"], "--vary takes KIND=VALUE,... with a kind of policy, reporter, delay, order, capacity"),
        (["policy"], "not 'policy'"),
        (["policy="], "not 'policy='"),
        (["delay=1", "delay=2"], "--vary delay is given twice"),
        (["delay=soon"], "--vary delay: 'soon' is not a number"),
        (["order=-1"], "order -1 is below 0"),
        (["order=1.5"], "--vary order: 1.5 is not a whole number"),
        (["capacity=inf"], "--vary capacity: inf is not a whole number"),
        (["order=high"], "--vary order: 'high' is not a number"),
        (["reporter=both"], "reporter 'both' is not one of boundary, rotation, scan, none"),
        (["policy=proxmux"], "did you mean proxmox"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        variants(SCENARIO, words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
