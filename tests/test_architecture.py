"""The laws that hold the project together, read from the source text.

``guest -> protocol <- host``: the two sides never import each other, each room imports only those that the table names,
and only shell files touch the operating system. The rest keeps files, functions and folders small enough to be read in
one sitting.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.harness.syntax import ROOT, imported_modules, name_of, nodes, python_files

# What each room may import of the project, beside itself and `protocol`: a folder of `host/` or `guest/`, or one of the
# files directly below these. A room is named after the rooms that it builds on, so the table has no circle. The top
# files of a side (`daemon`, `connection`, `vmm`, ...) join rooms and are free to import any of their own side.
ROOMS: dict[str, set[str]] = {
    "protocol": set(),
    "protocol.configuration": set(),
    "protocol.recording": set(),
    "protocol.process": {"protocol.recording"},
    # The daemon.
    "host.virtqueue": set(),
    "host.descriptors": set(),
    "host.peers": set(),
    "host.memory": {"host.virtqueue", "host.descriptors"},
    "host.inflight": {"host.virtqueue", "host.descriptors"},
    "host.balloon": {"host.virtqueue", "host.memory"},
    "host.vhost_user": {"host.virtqueue", "host.inflight", "host.balloon"},
    "host.ring": {"host.virtqueue", "host.descriptors", "host.memory", "host.balloon", "host.vhost_user"},
    "host.configuration": {"protocol.configuration", "host.balloon", "host.vhost_user", "host.control"},
    "host.events": {"host.ring", "host.peers"},
    "host.recording": {
        "protocol.recording",
        "host.virtqueue",
        "host.descriptors",
        "host.memory",
        "host.balloon",
        "host.vhost_user",
        "host.ring",
    },
    "host.qmp": set(),
    "host.terminal_view": set(),
    "host.doctor": set(),
    "host.policy": set(),
    "host.policy.live": {"host.policy", "host.qmp"},
    "host.inhibition": set(),
    "host.service_manager": set(),
    "host.metrics": {"host.qmp"},
    "host.balloonctl": {"host.qmp", "host.doctor", "host.terminal_view"},
    "host.control": {
        "host.memory",
        "host.balloon",
        "host.vhost_user",
        "host.ring",
        "host.qmp",
        "host.events",
        "host.doctor",
        "host.inhibition",
    },
    "host.migration": {
        "host.virtqueue",
        "host.descriptors",
        "host.peers",
        "host.inflight",
        "host.memory",
        "host.balloon",
        "host.vhost_user",
        "host.ring",
        "host.events",
        "host.control",
    },
    "host.vm_store": {"host.service_manager"},
    "host.sandbox": set(),
    "host.supervision": {
        "host.descriptors",
        "host.vhost_user",
        "host.qmp",
        "host.configuration",
        "host.service_manager",
        "host.vm_store",
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
    "guest.ledger": {"guest.mm", "guest.mm.reporting", "guest.mm.views"},
    "guest.simulation": {"guest.mm", "guest.mm.reporting", "guest.ledger", "guest.machine", "guest.workloads"},
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

OPERATING_SYSTEM = frozenset(
    "asyncio builtins concurrent ctypes fcntl glob grp importlib io mmap multiprocessing os posix pty pwd pyroute2 "  # noqa: SIM905
    "resource select selectors shutil signal socket socketserver subprocess tempfile termios threading time tty "
    "_io _posixsubprocess _socket _thread".split()
)
"""Modules that only shell files import."""

CALLS = {"open", "__import__", "eval", "exec"}
"""Built-in functions that only shell files call."""

PATH_CALLS = frozenset(
    "chmod exists glob hardlink_to is_dir is_file is_socket iterdir lstat mkdir open read_bytes read_text rename "  # noqa: SIM905
    "replace resolve rglob rmdir samefile stat symlink_to touch unlink walk write_bytes write_text".split()
)
"""Methods of a path that only shell files call; other files may keep paths, and take their parts."""

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
    | host/(__main__|command|daemon|sessions|session_release|worker|supervisor|connection|signals)\.py
    | host/(front_end_process|message_channel|backend_channel|netlink|guest_name)\.py
    | host/supervision/(machines|link|zygote|worker_process|worker_watch|supervised_vm|supervised_session)\.py
    | host/(supervision/(process_title|process_sessions)|sandbox/(sandbox|seccomp))\.py
    | host/configuration/(config_file|option_values|vm_listeners)\.py
    | host/descriptors/(received_file|socket_read|pipe|closing)\.py
    | host/peers/(peers|workers|helpers|helper_threads|fd_limit)\.py
    | host/memory/(guest_memory|sigbus|discard)\.py
    | host/inflight/inflight_file\.py
    | host/ring/(ring_service|ring_poller|hand_over|turn|queue_files)\.py
    | host/ring/(kick_file|kick_watch|signal_file|eventfd_signal)\.py
    | host/recording/(file_facts|recording_relay|recorded_session|recorded_virtqueue)\.py
    | host/events/(chain_events|session_events|vm_events|notices)\.py
    | host/supervision/(stored_machines|worker_commands|worker_watch)\.py
    | host/vm_store/(same_file|sent_once|vm_store)\.py
    | host/service_manager/(service_manager|keeper|listeners)\.py
    | host/inhibition/(front_end_look|discard_gate)\.py
    | host/qmp/qmp_client\.py
    | host/terminal_view/(terminal_app|plain_terminal)\.py
    | host/balloonctl/(commands|top|daemons|doctor|watch)\.py
    | host/metrics/metrics_server\.py
    | host/policy/live/(__main__|daemon|daemon_client|host_memory|policy_process|run)\.py
    | host/control/(control_server|balloon_size|guest_statistics|latest_value|reclaim|reclaim_progress)\.py
    | host/balloon/ballooned_pages\.py
    | host/control/(backed_memory|vm_control|daemon_status|control_commands)\.py
    | host/migration/(migration|dirty_log|state_transfer)\.py
    """,
    re.VERBOSE,
)


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
    """Return the room of a file by its dotted name: its folder, or the file itself directly below a side. A room's own
    name is that room's."""
    if name in ROOMS and (ROOT / name.replace(".", "/")).is_dir():
        return name
    folder, _, _ = name.rpartition(".")
    return name if folder in ("guest", "host") else folder


def called_name(call: ast.Call) -> str:
    """Return the last part of the name of what is called, "" for other expressions."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else ""


def uses_of_the_system(path: Path) -> set[str]:
    """Return by what the file touches the operating system: modules, built-in functions, methods of paths."""
    modules = imported_modules(path)
    uses = {module for module in modules if module.split(".")[0] in OPERATING_SYSTEM}
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        name = called_name(node)
        if isinstance(node.func, ast.Name) and name in CALLS:
            uses.add(name)
        elif isinstance(node.func, ast.Attribute) and name in PATH_CALLS and "pathlib" in modules:
            uses.add(f"Path.{name}")
    return uses


def test_laws_are_checked_on_a_breach() -> None:
    """A rule whose check finds nothing must be able to find something."""
    assert SHELL.fullmatch("host/daemon.py") is not None
    assert SHELL.fullmatch("guest/linux/kernel_files.py") is not None
    assert SHELL.fullmatch("host/vhost_user/backend.py") is None
    assert SHELL.fullmatch("guest/mm/buddy.py") is None


@pytest.mark.parametrize("package", sorted(SIDES))
def test_guest_and_host_meet_only_in_protocol(package: str) -> None:
    breaches = [
        f"{name_of(path)} imports {module}"
        for path in python_files(package)
        for module in sorted(imported_modules(path))
        if module.split(".")[0] in SIDES.keys() - SIDES[package]
    ]
    assert breaches == []


def test_rooms_import_only_the_rooms_that_they_may() -> None:
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


def test_rooms_of_the_table_exist() -> None:
    places = {room: ROOT / room.replace(".", "/") for room in ROOMS}
    assert [room for room, place in places.items() if not (place.is_dir() or place.with_suffix(".py").is_file())] == []


def test_operating_system_is_touched_by_shell_files_alone() -> None:
    breaches = []
    for path in python_files("guest", "host", "protocol"):
        if SHELL.fullmatch(name_of(path)) is not None:
            continue
        breaches += [f"{name_of(path)} uses {use}" for use in sorted(uses_of_the_system(path))]
    assert breaches == []


def test_every_shell_file_needs_to_be_one() -> None:
    files = {path for path in python_files("guest", "host", "protocol") if path.name != "__init__.py"}
    shell = {path for path in files if SHELL.fullmatch(name_of(path)) is not None}
    assert sorted(name_of(path) for path in shell if not uses_of_the_system(path)) == []


def test_system_is_found_however_it_is_touched(tmp_path: Path) -> None:
    file = tmp_path / "core.py"
    for source, use in {
        "def f():\n    import os.path": "os.path",
        "from concurrent.futures import Executor": "concurrent.futures",
        "open('x')": "open",
        "__import__('os')": "__import__",
        "from pathlib import Path\nPath('x').read_text()": "Path.read_text",
    }.items():
        file.write_text(source)
        nodes.cache_clear()
        assert uses_of_the_system(file) == {use}
    nodes.cache_clear()


def test_modules_are_imported_by_name() -> None:
    """What the rules here see are import statements."""
    found = [
        name_of(path)
        for path in python_files("guest", "host", "protocol", "scripts")
        if any(
            isinstance(node, ast.Call) and called_name(node) in ("__import__", "import_module") for node in nodes(path)
        )
    ]
    assert found == []
