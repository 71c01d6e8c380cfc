"""The laws that hold the project together, read from the source text.

``guest -> protocol <- host``: the two sides never import each other, each room imports only those that the table names,
and only shell files touch the operating system. The rest keeps files, functions and folders small enough to be read in
one sitting.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each room may import of the project, beside itself and `protocol`: a folder of `host/` or `guest/`, or one of the
# files directly below these. A room is named after the rooms that it builds on, so the table has no circle. The top
# files of a side (`daemon`, `connection`, `vmm`, ...) join rooms and are free to import any of their own side.
ROOMS: dict[str, set[str]] = {
    "protocol": set(),
    "protocol.process": set(),
    # The daemon.
    "host.virtqueue": set(),
    "host.descriptors": set(),
    "host.memory": {"host.virtqueue", "host.descriptors"},
    "host.inflight": {"host.virtqueue", "host.descriptors"},
    "host.balloon": {"host.virtqueue", "host.memory"},
    "host.vhost_user": {"host.virtqueue", "host.inflight", "host.balloon"},
    "host.ring": {"host.virtqueue", "host.descriptors", "host.memory", "host.balloon", "host.vhost_user"},
    "host.events": {"host.ring"},
    "host.control": {"host.memory", "host.balloon", "host.vhost_user", "host.ring"},
    "host.migration": {
        "host.virtqueue",
        "host.descriptors",
        "host.inflight",
        "host.memory",
        "host.balloon",
        "host.vhost_user",
        "host.ring",
        "host.events",
        "host.control",
    },
    # The guests.
    "guest.ram": set(),
    "guest.page_poison": set(),
    "guest.linux_profile": set(),
    "guest.control": set(),
    "guest.linux": set(),
    "guest.mm": set(),
    "guest.mm.reporting": {"guest.mm"},
    "guest.mm.views": {"guest.mm"},
    "guest.mm.x86": {"guest.mm"},
    "guest.scheduler": {"guest.mm"},
    "guest.machine": {"guest.mm", "guest.page_poison", "guest.scheduler"},
    "guest.workloads": {"guest.mm", "guest.machine"},
    "guest.simulation": {"guest.mm", "guest.mm.reporting", "guest.machine", "guest.workloads"},
    "guest.virtqueue": {"guest.mm"},
    "guest.vhost_user": {"guest.ram", "guest.virtqueue"},
    "guest.balloon": {
        "guest.mm",
        "guest.mm.reporting",
        "guest.ram",
        "guest.page_poison",
        "guest.linux_profile",
        "guest.machine",
        "guest.virtqueue",
        "guest.vhost_user",
    },
}

# Where both sides meet outside of `scripts` and `tests`: nowhere.
SIDES = {
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
    "io",
    "mmap",
    "os",
    "pyroute2",
    "resource",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
}
"""Modules that only shell files import. ``open`` counts as one of them."""

# The only files of the three packages that may touch the operating system. Everything else takes bytes, file
# descriptors as numbers and the time as arguments, and returns what is to be done.
SHELL = re.compile(
    r"""
      protocol/process/\w+\.py
    | guest/(__main__|command_line|vmm|balloon_device|ram|control)\.py
    | guest/balloon/(balloon_worker|reporting_worker)\.py
    | guest/vhost_user/(attachment|attached_queue|session|request_channel|backend_channel)\.py
    | guest/workloads/trace_file\.py
    | guest/linux/(__main__|ram_file|daemon_socket|processes|kernel_run|kernel_files|debian_packages|streams)\.py
    | host/(__main__|daemon|connection|message_channel|backend_channel|netlink)\.py
    | host/descriptors/(received_file|socket_read|helpers|pipe|workers|peers)\.py
    | host/memory/(guest_memory|sigbus|discard)\.py
    | host/inflight/inflight_file\.py
    | host/ring/(ring_service|turn|queue_files|kick_file|kick_watch|signal_file|eventfd_signal)\.py
    | host/events/chain_events\.py
    | host/control/(control_server|qmp_client|balloon_size|guest_statistics|latest_value|reclaim|reclaim_progress)\.py
    | host/balloon/ballooned_pages\.py
    | host/control/(backed_memory|vm_control)\.py
    | host/migration/(migration|dirty_log|state_transfer)\.py
    """,
    re.VERBOSE,
)

# Two screens of a function, and a file that is read in one sitting: 400 lines. The 20 above keep a correction from
# forcing a split on the person who makes it.
LONGEST_FUNCTION = 50
LONGEST_FILE = 420

# A folder is one room: 15 files. The two above are for the same reason.
FULLEST_FOLDER = 17

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


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return every node of the file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def name_of(path: Path) -> str:
    """Return the path as it is written in a message: relative to the checkout."""
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> set[str]:
    """Return every absolute module that the file imports, wherever in the file; a relative import fails the test."""
    modules: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            assert node.module is not None
            modules.add(node.module)
    return modules


def imported_files(path: Path) -> set[str]:
    """Return the dotted name of every file and package of the project that the file imports."""
    files: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            files.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            files.update(f"{node.module}.{alias.name}" for alias in node.names) if is_package else files.add(
                node.module
            )
    return {name for name in files if name.split(".")[0] in SIDES}


def room_of(name: str) -> str:
    """Return the room of a file by its dotted name: its folder, or the file itself directly below a side."""
    folder, _, _ = name.rpartition(".")
    return name if folder in ("guest", "host") else folder


def opens_files(path: Path) -> bool:
    """Return whether the file calls the built-in ``open``."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
        for node in nodes(path)
    )


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name, line, length) of every function; the length counts from ``def`` to the end, less the docstring."""
    for node in nodes(path):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        assert node.end_lineno is not None
        length = node.end_lineno - node.lineno + 1
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            assert first.end_lineno is not None
            length -= first.end_lineno - first.lineno + 1
        yield node.name, node.lineno, length


def test_laws_are_checked_on_a_breach() -> None:
    """A rule whose check finds nothing must be able to find something."""
    assert SHELL.fullmatch("host/daemon.py") is not None
    assert SHELL.fullmatch("guest/linux/kernel_files.py") is not None
    assert SHELL.fullmatch("host/vhost_user/backend.py") is None
    assert SHELL.fullmatch("guest/mm/ram.py") is None
    assert PRIVATE.search("opens /" + "home/me/x") is not None
    assert PRIVATE.search("$HOME/home/x and /usr/share/home/y") is None


@pytest.mark.parametrize("package", sorted(SIDES))
def test_guest_and_host_meet_only_in_protocol(package: str) -> None:
    breaches = [
        f"{name_of(path)} imports {module}"
        for path in python_files(package)
        for module in sorted(imported_modules(path))
        if module.split(".")[0] in SIDES.keys() - SIDES[package]
    ]
    assert breaches == []


def test_each_room_imports_only_the_rooms_that_it_may() -> None:
    breaches = []
    for path in python_files("guest", "host", "protocol"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        room = room_of(name)
        if path.name == "__init__.py" or (room == name and room not in ROOMS):
            continue  # the top files of a side
        assert room in ROOMS, f"{name_of(path)}: a room that the table does not name"
        allowed = ROOMS[room] | {room, "protocol", "protocol.process"}
        if room == "protocol":
            allowed = {room}  # the wire and the rings need nothing of a process
        breaches += [
            f"{name_of(path)} imports {module}"
            for module in sorted(imported_files(path))
            if room_of(module) not in allowed
        ]
    assert breaches == []


def test_rooms_build_on_each_other_without_a_circle() -> None:
    """Each room comes after those that it imports."""
    seen: set[str] = set()
    left = dict(ROOMS)
    while left:
        ready = {room for room, below in left.items() if below <= seen}
        assert ready, f"a circle among {sorted(left)}"
        seen |= ready
        left = {room: below for room, below in left.items() if room not in ready}


# The kernel's own: the slow path allocates again, and reclaim frees.
CIRCLES = {frozenset({"guest.mm.page_alloc", "guest.mm.alloc_slowpath", "guest.mm.vmscan"})}


def test_files_import_each_other_without_a_circle() -> None:
    """Imports for the type checker alone count too: who needs the other's type knows the other."""
    files = python_files("guest", "host", "protocol")
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    left = {name: imported_files((ROOT / name.replace(".", "/")).with_suffix(".py")) & names - {name} for name in names}
    while ready := {name for name, below in left.items() if not below & left.keys()}:
        left = {name: below for name, below in left.items() if name not in ready}
    # What is left is on a circle, or imports one. The files that no other of them imports are not on it.
    while above := left.keys() - set().union(*left.values()):
        left = {name: below for name, below in left.items() if name not in above}
    assert left.keys() == set().union(*CIRCLES)


def test_every_room_of_the_table_exists() -> None:
    places = {room: ROOT / room.replace(".", "/") for room in ROOMS}
    assert [room for room, place in places.items() if not (place.is_dir() or place.with_suffix(".py").is_file())] == []


def test_only_shell_files_touch_the_operating_system() -> None:
    breaches = []
    for path in python_files("guest", "host", "protocol"):
        if SHELL.fullmatch(name_of(path)) is not None:
            continue
        modules = {module for module in imported_modules(path) if module.split(".")[0] in OPERATING_SYSTEM}
        if opens_files(path):
            modules.add("open")
        breaches += [f"{name_of(path)} uses {module}" for module in sorted(modules)]
    assert breaches == []


def test_every_package_is_typed() -> None:
    packages = [ROOT / name for name in SIDES if name != "tests"]
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
    for path in python_files(*SIDES):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            breaches.append(f"{name_of(path)}: {lines} lines")
        breaches += [
            f"{name_of(path)}:{line}: {function} has {length} lines"
            for function, line, length in functions(path)
            if length > LONGEST_FUNCTION
        ]
    assert breaches == []


def test_folders_stay_small() -> None:
    """Beside its modules a folder holds only what describes it: the package file, the README, the type marker."""
    counts = Counter(path.parent for path in python_files(*SIDES) if path.name not in ("__init__.py", "conftest.py"))
    assert [f"{name_of(folder)}: {n} files" for folder, n in counts.items() if n > FULLEST_FOLDER] == []


def test_nothing_of_one_machine_is_in_the_checkout() -> None:
    paths = [path for package in SIDES for path in (ROOT / package).rglob("*")]
    paths += [*ROOT.glob("*.*"), *(ROOT / ".ci").glob("*")]
    breaches = []
    for path in paths:
        if not path.is_file() or path.suffix not in TEXT or path.name.startswith("."):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if PRIVATE.search(line) is not None:
                breaches.append(f"{name_of(path)}:{number}: {line.strip()[:80]}")
    assert breaches == []
