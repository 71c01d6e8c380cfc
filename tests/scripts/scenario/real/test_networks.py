"""Network namespaces of machines: what they see, that they go, and what is said where they cannot be had."""

import os
import subprocess
from pathlib import Path

import pytest

from host import netlink
from protocol.errors import BalloonError
from protocol.units import MIB
from scripts.scenario.real.networks import PREFIX, Networks, remove_old
from scripts.scenario.scenario import VmSpec
from scripts.stop_signals import signals_as_exceptions

ALONE = VmSpec(name="alone", memory_bytes=64 * MIB, has_network=True)
SHARED = VmSpec(name="shared", memory_bytes=64 * MIB)
BRIDGED = VmSpec(name="bridged", memory_bytes=64 * MIB, has_network=True, is_bridged=True)


def interfaces(prefix: list[str]) -> set[str]:
    """Return the network interfaces that a command after ``prefix`` sees."""
    lines = subprocess.run([*prefix, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout
    return {line.partition(":")[0].strip() for line in lines.splitlines() if ":" in line}


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_machine_sees_its_own_network_alone_and_nothing_stays() -> None:
    said: list[str] = []
    before = interfaces([])
    with Networks((ALONE, SHARED, BRIDGED), said.append) as networks:
        if said:
            pytest.skip(f"no network namespaces here: {said[0]}")
        assert set(networks.prefixes) == {"alone", "bridged"}
        assert interfaces(networks.prefixes["alone"]) == {"lo"}
        assert interfaces(networks.prefixes["bridged"]) == {"lo", "eth0"}
        assert interfaces([]) - before == {f"vub{os.getpid()}", f"vub{os.getpid()}p2"}
        remove_old()  # another run that starts leaves what is in use
        assert interfaces(networks.prefixes["alone"]) == {"lo"}
    assert interfaces([]) == before
    assert list(netlink.NAMESPACES.glob(f"{PREFIX}{os.getpid()}-*")) == []


def test_run_without_networks_removes_what_a_killed_one_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("scripts.scenario.real.networks.remove_old", lambda: calls.append("old"))
    with Networks((SHARED,), calls.append) as networks:
        assert networks.prefixes == {}
    assert calls == ["old"]


def test_without_privileges_one_line_is_said_and_the_host_network_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    removed: list[str] = []

    def make_one(name: str) -> str:
        if made:
            raise BalloonError(f"network namespace {name}: Operation not permitted")
        made.append(name)
        return name

    monkeypatch.setattr(netlink, "make_namespace", make_one)
    monkeypatch.setattr(netlink, "remove_namespace", removed.append)
    monkeypatch.setattr("scripts.scenario.real.networks.shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr("scripts.scenario.real.networks.remove_old", lambda: None)
    said: list[str] = []
    with Networks((ALONE, ALONE), said.append) as networks:
        assert networks.prefixes == {}
    assert said == [
        f"the machines share the host's network: network namespace {PREFIX}{os.getpid()}-1: Operation not permitted"
    ]
    assert removed == made


def test_run_that_wants_none_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.scenario.real.networks.shutil.which", lambda name: None)
    with Networks((SHARED,), lambda line: pytest.fail(line)) as networks:
        assert networks.prefixes == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_child_that_enters_a_namespace_does_not_unwind_the_stack_of_its_parent(tmp_path: Path) -> None:
    us = os.getpid()
    with signals_as_exceptions():
        try:
            with Networks((ALONE, BRIDGED), lambda line: None):
                pass
        finally:
            if os.getpid() != us:
                (tmp_path / "unwound").touch()
                os._exit(1)
    assert list(tmp_path.iterdir()) == []
