"""The kernel's command line, the scripts of process 1 and of COMMAND, the control line."""

import shlex
import subprocess

import pytest

from guest.linux.boot import (
    Consoles,
    ControlMessage,
    Stage,
    command_script,
    init_script,
    is_plain_path,
    kernel_arguments,
    parse_control_line,
    parse_features,
    parse_memory,
    visible_in_guest,
)
from protocol.errors import UsageError
from protocol.units import GIB, MIB

CONSOLES = Consoles(control_in=5, control_out=6, stdin=7, stdout=8, stderr=9)


def arguments(**changes: str) -> tuple[str, ...]:
    paths = {"control_root": "/tmp/x/root", "runtime": "/tmp/x/uml", "socket_path": "/tmp/x/vhost.sock"} | changes
    return kernel_arguments(memory=512 * MIB, consoles=CONSOLES, **paths)


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


def test_covered_directories_are_behind_run_host() -> None:
    assert visible_in_guest("/tmp/me/program") == "/run/host/tmp/me/program"
    assert visible_in_guest("/run") == "/run/host/run"
    assert visible_in_guest("/tmpfoo") == "/tmpfoo"
    assert visible_in_guest("/usr/bin/env") == "/usr/bin/env"


def test_command_survives_quoting() -> None:
    argv = ["/bin/printf", "%s", "a b", "it's", '"', "$HOME `id`", "new\nline", "*", "", "-x", "--"]
    script = command_script(argv, directory="/a dir", environment={})
    assert shlex.split(script[script.index("\nexec /bin/printf ") :]) == ["exec", *argv]


def test_environment_passes_except_for_what_the_guest_does_not_have() -> None:
    script = command_script(
        ["/bin/true"],
        directory="/",
        environment={
            "LANG": "C.UTF-8",
            "WORDS": "a 'b",
            "TMPDIR": "/var/x",
            "HOME": "/h",
            "BASH_FUNC_f%%": "() { :; }",
        },
    )
    exported = {line for line in script.splitlines() if line.startswith("export ")}
    assert "export LANG=C.UTF-8" in exported
    assert "export WORDS='a '\"'\"'b'" in exported
    assert "export HOME=/tmp/home" in exported
    assert not any("TMPDIR" in line or "BASH_FUNC" in line for line in exported)
    assert any(line.startswith("export PATH=") for line in exported)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("separate_stderr", [True, False])
def test_init_is_complete_and_a_shell_can_parse_it(terminal: bool, separate_stderr: bool) -> None:
    script = init_script(terminal=terminal, separate_stderr=separate_stderr, window=(50, 132))
    assert "@" not in script.replace('"$@"', "")
    assert ("rows 50 cols 132" in script) == terminal
    assert ("/run/stdin" in script) == (not terminal)
    assert ("/run/stderr" in script) == (separate_stderr or not terminal)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"booted 6.1.176\r", ControlMessage(Stage.BOOTED, "6.1.176")),
        (b"status 137", ControlMessage(Stage.STATUS, "137")),
        (b"balloon virtio0 0010", ControlMessage(Stage.BALLOON, "virtio0 0010")),
        (b"failed insmod virtio_balloon", ControlMessage(Stage.FAILED, "insmod virtio_balloon")),
        (b"", None),
        (b"\xff\xfe nonsense", None),
    ],
)
def test_control_line(line: bytes, message: ControlMessage | None) -> None:
    assert parse_control_line(line) == message


@pytest.mark.parametrize(("bits", "number"), [("000001", 32), ("1", 1), ("", 0), ("12", 0), ("0" * 64, 0)])
def test_features_are_written_with_bit_0_first(bits: str, number: int) -> None:
    assert parse_features(bits) == number
