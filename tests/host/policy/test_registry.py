"""Policies by name and parameters, and a user's own."""

from pathlib import Path

import pytest

from host.policy.mom import Mom
from host.policy.parameters import PerVm
from host.policy.proxmox import Proxmox
from host.policy.registry import POLICIES, describe_policies, make_policy
from protocol.errors import UsageError
from protocol.units import MIB
from tests.host.policy.observations import seen


def test_policies_have_the_names_that_they_are_listed_by() -> None:
    for name in POLICIES:
        policy = make_policy(name)
        assert policy.name == name
        assert policy.interval > 0
        assert len(describe_policies(name)) > 1
    assert len(describe_policies()) == len(POLICIES)


def test_parameters_are_typed_or_text() -> None:
    typed = make_policy("proxmox", {"maxchange": 50 * MIB, "ballooning-target": 70, "interval": 3, "shares": 5})
    text = make_policy("proxmox", {"maxchange": "50M", "ballooning_target": "70", "interval": "3.0", "shares": "5"})
    assert isinstance(typed, Proxmox)
    assert isinstance(text, Proxmox)
    assert typed.parameters == text.parameters
    assert (typed.interval, typed.parameters.shares) == (3.0, PerVm(5.0))


def test_number_may_differ_by_machine() -> None:
    policy = make_policy("mom", {"balloon_min": "0.5, web=1,db=0.25"})
    assert isinstance(policy, Mom)
    shares = policy.parameters.balloon_min
    assert [shares.of(name) for name in ("web", "db", "other")] == [1.0, 0.25, 0.5]
    assert str(shares) == "0.5,web=1,db=0.25"


@pytest.mark.parametrize(
    ("name", "parameters", "line"),
    [
        ("mon", {}, "no policy is called 'mon', did you mean mom? (there are steady, reporting, "),
        ("zzzzz", {}, "no policy is called 'zzzzz' (there are "),
        ("mom", {"presure_threshold": 1}, "mom has no parameter 'presure_threshold', did you mean pressure_threshold?"),
        ("mom", {"pressure_threshold": 2}, "mom: pressure_threshold: 2 is not from 1e-06 to 1"),
        ("mom", {"pressure_threshold": "x"}, "mom: pressure_threshold: 'x' is not a number"),
        ("mom", {"pressure_threshold": True}, "mom: pressure_threshold: True is not a number"),
        ("mom", {"pressure_threshold": "nan"}, "mom: pressure_threshold: 'nan' is not a finite number"),
        ("mom", {"sample_history_length": 1.5}, "mom: sample_history_length: 1.5 is not a whole number"),
        ("mom", {"sample_history_length": 0}, "mom: sample_history_length: 0 is not from 1 to 1000"),
        ("mom", {"balloon_min": "web=1"}, "mom: balloon_min: 'web=1' has no number for the other virtual machines"),
        ("mom", {"balloon_min": "1,a=0,a=1"}, "mom: balloon_min: a comes twice"),
        ("mom", {"balloon_min": "1,a=7"}, "mom: balloon_min of a: 7 is not from 0 to 1"),
        ("mom", {"balloon-min": 1, "balloon_min": 1}, "mom: parameter balloon_min comes twice"),
        ("wsl", {"auto_memory_reclaim": "gradul"}, "'gradul' is not one of disabled, gradual, dropcache, did you mean"),
        ("wsl", {"floor": "lots"}, "wsl: floor: not a size: 'lots'"),
        ("wsl", {"floor": -1}, "wsl: floor: -1 is less than 0"),
        ("wsl", {"interval": 0}, "wsl: interval: 0 is not from 0.05 to 86400"),
        ("no_such_module:Policy", {}, "policy no_such_module:Policy: No module named 'no_such_module'"),
        (":", {}, "policy :: "),
        ("host.policy.mom:Nom", {}, "policy host.policy.mom:Nom: the module host.policy.mom has no Nom"),
        ("host.policy.mom:Mom", {"x": 1}, "policy host.policy.mom:Mom cannot be made: TypeError: "),
    ],
)
def test_mistakes_are_one_line_that_says_what_there_is(name: str, parameters: dict[str, str], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_policy(name, parameters)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


OWN = """
from host.policy.policy import Decision

class Own:
    name = "own"
    interval = 10.0
    def __init__(self, part=2):
        self.part = part
    def decide(self, seen):
        return Decision((), f"a part of {self.part}")

class Hasty(Own):
    interval = 0

class Nameless(Own):
    name = None

class Broken(Own):
    def __init__(self):
        raise ValueError("not today")

class Leaving(Own):
    def __init__(self):
        raise SystemExit(0)

Idle = type("Idle", (), {})
"""


def test_own_policy_is_module_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_policies.py").write_text(OWN)
    (tmp_path / "unfit_policies.py").write_text("1 / 0")
    (tmp_path / "leaving_policies.py").write_text("import sys; sys.exit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    assert make_policy("own_policies:Own").decide(seen()).reason == "a part of 2"
    assert make_policy("own_policies:Own", {"part": 3}).decide(seen()).reason == "a part of 3"
    for name, line in {
        "own_policies:Hasty": "interval is 0, not seconds from 0.05 to 86400",
        "own_policies:Nameless": "has no name, which is a string",
        "own_policies:Broken": "cannot be made: ValueError: not today",
        "own_policies:Leaving": "cannot be made: SystemExit: 0",
        "leaving_policies:X": "leaving_policies cannot be imported: SystemExit: 0",
        "own_policies:Idle": "has no method decide(seen)",
        "unfit_policies:X": "unfit_policies cannot be imported: ZeroDivisionError: division by zero",
    }.items():
        with pytest.raises(UsageError) as caught:
            make_policy(name)
        assert str(caught.value).endswith(line)
