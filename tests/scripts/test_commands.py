"""The commands of a checkout, before Python comes in: help, the search for an interpreter, the one environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent.parent
COMMANDS: Final = (
    "test",
    "demo",
    "bench",
    "lab",
    "qemu",
    "vhost-user-balloon",
    "balloon-guest",
    "balloon-linux",
    "balloon-check",
    "balloon-policy",
)

# What the bootstrap needs besides Python; a PATH with nothing else shows that it needs nothing else.
TOOLS: Final = ("bash", "dirname", "readlink", "uname", "sha256sum", "cut", "mkdir", "flock", "mv", "env", "cat")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose lock file is empty, so that nothing is downloaded, with a host that only says who it is."""
    checkout = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "host").mkdir()
    (checkout / "host" / "__init__.py").write_text("")
    (checkout / "host" / "__main__.py").write_text("import sys; print('the right host', sys.argv[1:])\n")
    (checkout / "requirements.lock").write_text("")
    return checkout


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A directory to be the whole PATH: the tools that a minimal Linux has, no Python."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return directory


def run(
    command: Path, *arguments: str, directory: Path = Path("/"), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of a checkout from another directory, without this environment's Python settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [command, *arguments],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**clean, **environment},
        check=False,
        timeout=120,
    )


def test_commands_can_be_executed_and_stop_at_the_first_error() -> None:
    for path in (*(ROOT / "scripts" / name for name in COMMANDS), ROOT / ".ci/run"):
        assert os.access(path, os.X_OK), path
        lines = path.read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env bash", path
        assert "set -euo pipefail" in lines, path
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_help_of_scripts_test_needs_nothing_installed(checkout: Path) -> None:
    done = run(checkout / "scripts/test", "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"test"}))
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_program_says_what_it_is_without_an_environment(tmp_path: Path, name: str, option: str) -> None:
    """With the standard library alone: `-S` keeps the interpreter from what is installed here."""
    checkout = tmp_path / "checkout"
    for package in ("guest", "host", "protocol", "scripts"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    bare = tmp_path / "python3"
    bare.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = run(checkout / "scripts" / name, option, PYTHON=str(bare))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {checkout}/scripts/{name}" if option == "--help" else f"{checkout}/scripts/")
    assert not (checkout / ".venv").exists()


def test_error_names_the_command_as_it_was_typed(checkout: Path) -> None:
    shutil.rmtree(checkout / "host")
    for package in ("host", "protocol", "guest"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "requirements.lock").write_text((ROOT / "requirements.lock").read_text())
    done = run(Path("scripts/vhost-user-balloon"), "--fd", "x", directory=checkout, PYTHON=sys.executable)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("scripts/vhost-user-balloon: argument --fd: invalid int value: 'x'")


def test_python_too_old_is_one_clear_line(checkout: Path, tools: Path) -> None:
    old = tools / "python3"
    old.write_text("#!/usr/bin/env bash\nexit 1\n")  # what `sys.exit(version < wanted)` does in an old one
    old.chmod(0o755)
    done = run(checkout / "scripts/demo", PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{checkout}/scripts/demo: Python 3.11 or newer is needed")


def test_environment_is_made_once_by_two_at_once_and_reused_by_the_next(checkout: Path, tmp_path: Path) -> None:
    command = checkout / "scripts/vhost-user-balloon"
    environment = {**os.environ, "PYTHON": sys.executable}
    with (
        subprocess.Popen([command, "a  b"], stdout=-1, stderr=-1, text=True, cwd="/", env=environment) as first,
        subprocess.Popen([command, "a  b"], stdout=-1, stderr=-1, text=True, cwd="/", env=environment) as second,
    ):
        said = [process.communicate(timeout=120) for process in (first, second)]
    assert [output for output, _ in said] == ["the right host ['a  b']\n"] * 2
    assert sorted(errors.count("creating a Python environment") for _, errors in said) == [0, 1]

    # In any current directory: a package `host` there is not ours.
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "__main__.py").write_text("print('the wrong host')\n")
    again = run(command, directory=tmp_path)
    assert (again.stdout, again.stderr) == ("the right host []\n", "")

    (checkout / "requirements.lock").write_text("# changed\n")
    changed = run(command)
    assert changed.returncode == 0
    assert "installing requirements.lock" in changed.stderr
    assert "creating" not in changed.stderr


def test_installation_that_fails_ends_with_one_clear_line_and_is_tried_again(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text("this is no requirement\n")
    for _ in range(2):
        done = run(checkout / "scripts/vhost-user-balloon", PYTHON=sys.executable)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith(
            f"{checkout}/scripts/vhost-user-balloon: cannot install requirements.lock"
        )


def test_checkout_that_cannot_be_written_gets_an_environment_in_the_users_cache(checkout: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can write anywhere")
    checkout.chmod(0o555)
    try:
        done = run(checkout / "scripts/vhost-user-balloon", PYTHON=sys.executable, XDG_CACHE_HOME=str(tmp_path / "c"))
    finally:
        checkout.chmod(0o755)
    assert done.stdout == "the right host []\n"
    assert not (checkout / ".venv").exists()
    assert list((tmp_path / "c" / "vhost-user-balloon").glob("*/.venv"))
