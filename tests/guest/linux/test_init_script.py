"""The scripts of process 1 and of COMMAND."""

import shlex
import subprocess

import pytest

from guest.linux.init_script import command_script, init_script, visible_in_guest


def test_covered_directories_are_below_run_host() -> None:
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
