"""Scenarios from TOML, and one line for each mistake in them."""

import re
from pathlib import Path

import pytest

from protocol.errors import BalloonError, UsageError
from protocol.units import GIB, MIB
from scripts.scenario.scenario import Scenario, VmKind
from scripts.scenario.scenario_file import find_scenario, load_scenario, parse_scenario, shipped_scenarios

HEAD = 'duration = "60s"\n[host]\nmemory = "1G"\n'


def parse(text: str) -> Scenario:
    return parse_scenario(text, "here", Path())


EVERYTHING = """
title = "All of it"
duration = "1h"
sample = "500ms"
seed = 7
[host]
memory = "3G"
swap = "1G"
[policy]
name = "mom"
interval = 5.0
[[vm]]
name = "build"
count = 3
start = 2
stagger = "10m"
memory = "1G"
kind = "coarse"
reporter = "rotation"
reporting = { order = 8, delay = "500ms", capacity = 16 }
cpus = 2
boot = "100M"
overhead = "20M"
expendable = true
profile = "6.1"
workloads = ["idle:seconds=3", "build:size=256M,seconds=30"]
[[vm]]
memory = "512M"
reporter = "none"
bridge = true
[[vm.phase]]
workload = "memhog"
size = "128M"
hold = "2m"
rest = 1.5
"""


PAGE = Path(__file__).parents[3] / "scripts/scenario/README.md"


def test_the_example_of_the_page_has_every_key_of_a_machine() -> None:
    text = PAGE.read_text(encoding="utf-8")
    example, real = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert [vm.kind for vm in parse(example + real).vms] == [VmKind.EMULATED, VmKind.EMULATED, VmKind.LINUX]
    with pytest.raises(UsageError) as caught:
        parse(HEAD + '[[vm]]\nmemory = "1G"\nx = 1\n')
    known = re.findall(r"\w+", str(caught.value).partition("known are")[2])
    assert [key for key in known if key != "phase" and f"\n{key} = " not in example + real] == []
    assert "[[vm.phase]]" in text


def test_a_scenario_with_everything() -> None:
    scenario = parse(EVERYTHING)
    assert (scenario.name, scenario.title, scenario.seed) == ("here", "All of it", 7)
    assert (scenario.duration, scenario.sample_interval) == (3600.0, 0.5)
    assert (scenario.budget_bytes, scenario.swap_bytes) == (3 * GIB, GIB)
    assert (scenario.policy.name, scenario.policy.parameters) == ("mom", {"interval": 5.0})
    assert [vm.name for vm in scenario.vms] == ["build-1", "build-2", "build-3", "vm2"]
    assert [vm.start for vm in scenario.vms] == [2.0, 602.0, 1202.0, 0.0]
    first, *_, last = scenario.vms
    assert first.kind is VmKind.COARSE
    assert first.reporting == {"order": 8, "delay": 0.5, "capacity": 16}
    assert (first.boot_bytes, first.overhead_bytes, first.cpus, first.profile) == (100 * MIB, 20 * MIB, 2, "6.1")
    assert first.expendable
    assert first.workloads == ("idle:seconds=3", "build:size=256M,seconds=30")
    assert last.reporter is None
    assert last.workloads == ("memhog:size=128M,hold=120.0,rest=1.5",)


def test_a_bridge_takes_a_network_namespace() -> None:
    scenario = parse(HEAD + '[[vm]]\nmemory = "1G"\n[[vm]]\nmemory = "1G"\nbridge = true\n')
    assert [(vm.has_network, vm.is_bridged) for vm in scenario.vms] == [(False, False), (True, True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + '[[vm]]\nmemory = "512X"\n', "vm[0].memory: not a size: '512X'"),
        (
            HEAD + '[[vm]]\nmemory = "1G"\n[[vm]]\nmemry = "1G"\nmemory="1G"',
            "vm[1].memry: unknown key, did you mean memory?",
        ),
        (HEAD + '[[vm]]\nmemory = "1M"\n', "vm[0].memory: below 16777216"),
        (HEAD + "[[vm]]\nmemory = 16777217\n", "vm[0].memory: 16777217 bytes are not a multiple of 4 MiB"),
        (HEAD + "[[vm]]\n", "vm[0].memory: missing"),
        (
            HEAD + '[[vm]]\nmemory = "1G"\nbridge = true\nnetwork = false\n',
            "vm[0].bridge: only a network namespace has one, and network is false",
        ),
        (HEAD + '[[vm]]\nmemory = "1G"\nstart = "soon"\n', "vm[0].start: not a time: 'soon'"),
        (HEAD + '[[vm]]\nmemory = "1G"\nstart = -1\n', "vm[0].start: -1 s is not from 0 s"),
        (
            HEAD + '[[vm]]\nmemory = "1G"\nreporter = "rotate"\n',
            "unknown 'rotate', did you mean rotation? (allowed are",
        ),
        (HEAD + '[[vm]]\nmemory = "1G"\nkind = "real"\n', "vm[0].kind: unknown 'real'"),
        (HEAD + '[[vm]]\nmemory = "1G"\nreporting = { order = 11 }\n', "vm[0].reporting: reporting order 11"),
        (HEAD + '[[vm]]\nmemory = "1G"\nreporting = { oder = 9 }\n', "vm[0].reporting.oder: unknown key, did you mean"),
        (HEAD + '[[vm]]\nmemory = "1G"\nreporter = "none"\nreporting = { order = 9 }\n', "the reporter is none"),
        (
            HEAD + '[[vm]]\nmemory = "1G"\nworkloads = ["memhogg"]\n',
            "vm[0].workloads[0]: unknown workload 'memhogg', did",
        ),
        (HEAD + '[[vm]]\nmemory = "1G"\nworkloads = ["memhog:sz=1"]\n', "vm[0].workloads[0]: workload memhog: unknown"),
        (HEAD + '[[vm]]\nmemory = "1G"\nworkloads = ["trace:nowhere"]\n', "vm[0].workloads[0]: "),
        (
            HEAD + '[[vm]]\nmemory = "1G"\n[[vm.phase]]\nworkload = "idle"\nseconds = "x"\n',
            "vm[0].phase[0].seconds: not a time",
        ),
        (HEAD + '[[vm]]\nmemory = "1G"\nworkloads = ["idle"]\n[[vm.phase]]\nworkload = "idle"\n', "not both"),
        (HEAD + '[[vm]]\nmemory = "1G"\ncount = 0\n', "vm[0].count: 0 is not from 1 to 100000"),
        (HEAD + '[[vm]]\nmemory = "1G"\nexpendable = 1\n', "vm[0].expendable: 1 is neither true nor false"),
        (HEAD + '[[vm]]\nmemory = "1G"\nname = "a b"\n', "vm[0].name: 'a b' is not a name"),
        (HEAD + '[[vm]]\nmemory = "1G"\nboot = "1G"\n', "vm[0].boot: not less than"),
        (HEAD + '[[vm]]\nmemory = "1G"\ncommand = "true"\n', "vm[0].command: a machine of kind"),
        (HEAD + '[[vm]]\nmemory = "1G"\nkind = "linux"\nworkloads = ["idle"]\n', "vm[0].workloads: a real kernel"),
        (
            HEAD + '[[vm]]\nmemory = "1G"\nname = "a"\n[[vm]]\nmemory = "1G"\nname = "a"\n',
            "2 virtual machines are called a",
        ),
        (HEAD + "[vm]\n", "vm: not an array of tables (write [[vm]])"),
        (HEAD, "vm: a scenario has at least one virtual machine"),
        ('duration = "1m"\nhost = 3\n', "host: not a table (write [host])"),
        ('duration = "1m"\n[host]\nmemory = true\n', "host.memory: True is not a whole number"),
        ('duration = "1m"\n[[vm]]\nmemory = "1G"\n', "host.memory: missing"),
        (HEAD + '[policy]\nname = "mom"\nlist = [1]\n', "policy.list: not a string, a number"),
        (HEAD + '[policy]\nname = "mon"\n', "policy.name: no policy is called 'mon', did you mean mom?"),
        (
            HEAD + '[policy]\nname = "mom"\nintervall = 3\n',
            "policy.intervall: mom has no parameter 'intervall', did you mean",
        ),
        (HEAD + '[policy]\nname = "mom"\ninterval = 3\npressure_threshold = 7\n', "policy.pressure_threshold: "),
        ('durations = "60s"\n', "duration: missing (there is durations, which is like it)"),
        (f"duration = {'9' * 400}\n", "duration: inf s is not from 0.001 s"),
        (f'duration = "1m"\njitter = -{"9" * 400}\n', "jitter: -inf% is not from 0% to 50%"),
        (f"duration = {'9' * 5000}\n", "not TOML: Exceeds the limit (4300 digits)"),
        (f"duration = {'[' * 5000}{']' * 5000}\n", "not TOML: lists or tables that are nested too deeply"),
        (HEAD + '[[vm]]\nmemry = "1G"\n', r"vm[0].memory: missing (there is memry, which is like it)"),
        ('duration = "60s"\n[hots]\nmemory = "1G"\n', "hots: unknown key, did you mean host?"),
        ('duration = "60s"\n[host\n', "line 2, column 6: not TOML: "),
        ('duration = "60s', "line 1: not TOML: "),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_file_is_named_in_the_message(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('duration = "60s"\nhost = 1\n')
    with pytest.raises(UsageError, match=r"mine\.toml: host: "):
        load_scenario(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        load_scenario(file)
    with pytest.raises(BalloonError, match="No such file"):
        load_scenario(tmp_path / "other.toml")


def test_a_trace_is_a_file_beside_the_scenario(tmp_path: Path) -> None:
    text = HEAD + '[[vm]]\nmemory = "1G"\nworkloads = ["trace:missing.trace"]\n'
    with pytest.raises(UsageError, match=str(tmp_path / "missing.trace")):
        parse_scenario(text, "here", tmp_path)


def test_names_and_paths() -> None:
    assert find_scenario("./taking-turns") == Path("./taking-turns")
    assert find_scenario("x.toml") == Path("x.toml")
    with pytest.raises(UsageError, match="no scenario is called 'nothing-like-it'"):
        find_scenario("nothing-like-it")


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_are_valid(name: str) -> None:
    scenario = load_scenario(find_scenario(name))
    assert scenario.title != name
    assert scenario.vms
