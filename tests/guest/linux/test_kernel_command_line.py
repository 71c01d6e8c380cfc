"""The kernel's command line."""

import pytest

from guest.linux.kernel_command_line import Consoles, is_plain_path, kernel_arguments, parse_memory, parse_parameters
from protocol.errors import UsageError
from protocol.units import GIB, MIB

CONSOLES = Consoles(control_in=5, control_out=6, stdin=7, stdout=8, stderr=9)


def arguments(*parameters: str, **changes: str) -> tuple[str, ...]:
    paths = {"control_root": "/tmp/x/root", "runtime": "/tmp/x/uml", "socket_path": "/tmp/x/vhost.sock"} | changes
    return kernel_arguments(memory=512 * MIB, consoles=CONSOLES, parameters=parameters, **paths)


def test_kernel_gets_memory_device_root_and_consoles() -> None:
    line = arguments()
    for word in (
        "mem=512M",
        "virtio_uml.device=/tmp/x/vhost.sock:5",
        "rootfstype=hostfs",
        "rootflags=/tmp/x/root",
        "con5=fd:5,fd:6",
        "con2=fd:7,null",
        "con3=null,fd:8",
        "con4=null,fd:9",
        "noreboot",
    ):
        assert word in line
    assert not any(word.startswith("con1=") for word in line)


@pytest.mark.parametrize("path", ["/tmp/a b", "/tmp/a:5", "/tmp/a,b", "relative", '/tmp/"', "/tmp/\n", "/tmp/ä"])
@pytest.mark.parametrize("which", ["control_root", "runtime", "socket_path"])
def test_path_that_the_command_line_would_split_is_refused(which: str, path: str) -> None:
    assert not is_plain_path(path)
    with pytest.raises(UsageError, match="cannot carry"):
        arguments(**{which: path})


@pytest.mark.parametrize(("text", "size"), [("64M", 64 * MIB), ("512M", 512 * MIB), ("1g", GIB), ("1GiB", GIB)])
def test_memory_of_whole_mebibytes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "reason"), [("63M", "at least"), ("0", "at least"), ("65537K", "whole MiB"), ("much", "not a size")]
)
def test_memory_that_no_kernel_boots_with_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_memory(text)


def test_parameters_of_the_user_come_last() -> None:
    parameters = parse_parameters(" loglevel=3  printk.time=0 ")
    assert arguments(*parameters)[-2:] == ("loglevel=3", "printk.time=0")


@pytest.mark.parametrize("text", ["mem=1G", "quiet init=/bin/sh", "con0=fd:3", "console=tty1", "quiet -- x"])
def test_parameter_that_the_launcher_sets_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"the launcher sets it|would end"):
        parse_parameters(text)
