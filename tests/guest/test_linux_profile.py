"""guest/linux_profile.py, and what ``--profile`` decides."""

from pathlib import Path

import pytest

from guest.boot_memory import make_allocator
from guest.command_line import make_parser, vmm_options
from guest.linux_profile import LINUX_6_1, LINUX_7_2, PROFILES
from guest.vmm import VirtualMachine
from guest.vmm_options import VmmOptions
from protocol.errors import UsageError
from protocol.process.events import EventLog
from protocol.virtio import FeatureBit, has_feature


def options(*arguments: str) -> VmmOptions:
    common = ("--socket-path", "balloon.sock", "--memory", "64M")
    return vmm_options(make_parser().parse_args([*common, *arguments]))


def test_profile_is_that_of_linux_7_2_unless_another_is_named() -> None:
    assert options().profile is LINUX_7_2
    for name, profile in PROFILES.items():
        assert options("--profile", name).profile is profile


@pytest.mark.parametrize(
    ("arguments", "indirect"),
    [
        ((), False),
        (("--profile", "6.1"), True),
        (("--profile", "6.1", "--indirect", "off"), False),
        (("--indirect", "on"), True),
    ],
)
def test_indirect_tables_are_negotiated_as_the_profile_says_unless_told_otherwise(
    arguments: tuple[str, ...], indirect: bool
) -> None:
    assert has_feature(options(*arguments).ring.features, FeatureBit.RING_INDIRECT_DESC) is indirect


def test_fallback_is_that_of_the_profile() -> None:
    assert make_allocator(options("--profile", "7.2")).claims_pageblocks
    assert not make_allocator(options("--profile", "6.1")).claims_pageblocks


def test_blocks_that_change_their_type_go_to_the_tail_under_rotation_and_to_the_head_in_the_design_of_2019() -> None:
    assert make_allocator(options("--reporter", "rotation")).move_to_tail
    assert not make_allocator(options("--reporter", "boundary")).move_to_tail


def machine(*arguments: str) -> None:
    VirtualMachine(options(*arguments), EventLog(None, lambda: 0.0))


def test_reporting_ring_that_the_driver_of_6_1_refuses_is_refused() -> None:
    ring = ("--queue-size", "16", "--profile", "6.1")
    with pytest.raises(UsageError, match=r"^Linux 6\.1 takes no reporting queue .*: 16 are fewer than 32$"):
        machine(*ring, "--reporter", "rotation")
    machine(*ring, "--reporter", "rotation", "--reporting-capacity", "16")
    machine(*ring, "--reporter", "boundary")
    machine("--queue-size", "16", "--profile", "7.2", "--reporter", "rotation")


def test_statistics_of_6_1_are_those_of_the_specification_and_7_2_adds_to_them_before_the_memory() -> None:
    assert [int(tag) for tag in LINUX_6_1.statistics] == [0, 1, 8, 9, 4, 5, 6, 7]
    assert [int(tag) for tag in LINUX_7_2.statistics] == [0, 1, 10, 11, 14, 15, 8, 9, 4, 5, 6, 7]


def test_unknown_profile_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        make_parser().parse_args(["--socket-path", str(Path("balloon.sock")), "--profile", "5.4"])
    assert ending.value.code == 2
    assert "--profile" in capsys.readouterr().err
