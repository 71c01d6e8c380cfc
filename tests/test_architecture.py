"""The laws that hold the project together, read from the source text.

``guest -> protocol <- host``: the two sides never import each other, and only shell files touch the operating system.
The rest keeps files and functions small enough to be read in one sitting.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each package may import of the project. `scripts` is where both sides meet outside the tests.
ALLOWED = {
    "protocol": {"protocol"},
    "guest": {"guest", "protocol"},
    "host": {"host", "protocol"},
    "scripts": {"scripts", "guest", "host", "protocol"},
    "tests": {"tests", "scripts", "guest", "host", "protocol"},
}

OPERATING_SYSTEM = {
    "asyncio",
    "ctypes",
    "fcntl",
    "mmap",
    "os",
    "pyroute2",
    "resource",
    "select",
    "signal",
    "socket",
    "subprocess",
    "time",
}

# The only files of the three packages that may import one of the above. Everything else takes bytes, file descriptors
# as numbers and the time as arguments, and returns what is to be done.
SHELL = re.compile(
    r"""
      guest/(ram|vmm|attachment|attached_queue|session|session_channel|\w+_worker|linux|linux_\w+|control|__main__)\.py
    | host/(guest_memory|lost_memory|discard|daemon|connection|received_file|ring_service|__main__)\.py
    | host/(backend_channel|queue_files|eventfd_signal)\.py
    | host/(netlink|reclaim|vm_control|latest_value|chain_events)\.py
    | host/(dirty_log|inflight_file|migration|state_transfer)\.py
    | host/(control|control_client|listening_socket)\.py
    """,
    re.VERBOSE,
)

# Two screens of a function, and a file that is read in one sitting: 400 lines. The 20 above keep a correction from
# forcing a split on the person who makes it.
LONGEST_FUNCTION = 50
LONGEST_FILE = 420

# What belongs to one person's machine and not into a checkout.
PRIVATE = re.compile(
    r"""
      (?<![\w.$}])/(root|home|Users|work)/\w     # somebody's directory
    | --(extra-)?index-url | --find-link[s]      # where somebody's packages come from
    | file:///\w
    """,
    re.VERBOSE,
)
TEXT = {".py", ".md", ".toml", ".lock", ".sh", ".ini", ".yml", ".yaml", ""}


def python_files(*packages: str) -> list[Path]:
    """Return the Python files of the given top-level packages, in a stable order."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the path as it is written in a message: relative to the checkout."""
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> set[str]:
    """Return every absolute module that the file imports, wherever in the file; a relative import fails the test."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            assert node.module is not None
            modules.add(node.module)
    return modules


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name, line, length) of every function; the length counts from ``def`` to the end, less the docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            assert first.end_lineno is not None
            length -= first.end_lineno - first.lineno + 1
        yield node.name, node.lineno, length


def test_the_laws_are_checked_on_a_breach() -> None:
    """A rule whose check finds nothing must be able to find something."""
    assert SHELL.fullmatch("host/daemon.py") is not None
    assert SHELL.fullmatch("guest/linux_packages.py") is not None
    assert SHELL.fullmatch("host/backend.py") is None
    assert SHELL.fullmatch("guest/mm/ram.py") is None
    assert PRIVATE.search("opens /" + "home/me/x") is not None
    assert PRIVATE.search("$HOME/home/x and /usr/share/home/y") is None


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_guest_and_host_meet_only_in_protocol(package: str) -> None:
    breaches = [
        f"{name_of(path)} imports {module}"
        for path in python_files(package)
        for module in sorted(imported_modules(path))
        if module.split(".")[0] in ALLOWED.keys() - ALLOWED[package]
    ]
    assert breaches == []


def test_only_shell_files_touch_the_operating_system() -> None:
    breaches = [
        f"{name_of(path)} imports {module}"
        for path in python_files("guest", "host", "protocol")
        if SHELL.fullmatch(name_of(path)) is None
        for module in sorted(imported_modules(path))
        if module.split(".")[0] in OPERATING_SYSTEM
    ]
    assert breaches == []


def test_every_package_is_typed() -> None:
    packages = [ROOT / name for name in ALLOWED if name != "tests"]
    assert [name_of(package) for package in packages if not (package / "py.typed").is_file()] == []


def test_package_files_hold_a_docstring_only() -> None:
    """Nothing is re-exported: every name has one place."""
    breaches = []
    for path in python_files("guest", "host", "protocol", "scripts"):
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if len(tree.body) != 1 or ast.get_docstring(tree) is None:
                breaches.append(name_of(path))
    assert breaches == []


def test_files_and_functions_stay_small() -> None:
    breaches = []
    for path in python_files(*ALLOWED):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            breaches.append(f"{name_of(path)}: {lines} lines")
        breaches += [
            f"{name_of(path)}:{line}: {function} has {length} lines"
            for function, line, length in functions(path)
            if length > LONGEST_FUNCTION
        ]
    assert breaches == []


def test_nothing_of_one_machine_is_in_the_checkout() -> None:
    paths = [path for package in ALLOWED for path in (ROOT / package).rglob("*")]
    paths += [*ROOT.glob("*.*"), *(ROOT / ".ci").glob("*")]
    breaches = []
    for path in paths:
        if not path.is_file() or path.suffix not in TEXT or path.name.startswith("."):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if PRIVATE.search(line) is not None:
                breaches.append(f"{name_of(path)}:{number}: {line.strip()[:80]}")
    assert breaches == []
