"""Scenarios as TOML files, and those that are shipped by their names.

::

    title = "Two machines take turns"
    duration = "60s"
    sample = "250ms"                    # time between two samples
    seed = 0
    jitter = "10%"                      # starts, sizes and durations vary so much with the seed; seed 0: not at all

    [host]
    memory = "1300M"                    # for all machines together
    swap = "0"

    [policy]
    name = "reporting"                  # other keys are the policy's parameters

    [[vm]]
    name = "turn"
    count = 2                           # turn-1 and turn-2
    stagger = "10s"                     # between their starts
    start = "0s"
    memory = "1G"
    reporter = "boundary"               # boundary, rotation, scan or none
    reporting = { order = 9, delay = "100ms" }
    workloads = ["memhog:size=768M,hold=2", "idle"]      # as of balloon-guest, one after the other

    [[vm]]
    memory = "1G"
    [[vm.phase]]                        # instead of `workloads`
    workload = "memhog"
    size = "512M"
    hold = "1m"

Sizes are strings such as "512M" or bytes, times are strings such as "90s", "10m", "1h" or seconds.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from guest.linux_profile import PROFILES
from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.workloads.trace_file import TRACE
from guest.workloads.workload_options import WORKLOAD_NAMES, parse_workload
from host.policy.parameters import Value
from host.policy.registry import make_policy
from protocol.configuration.toml_table import Table, nearest, parse_seconds
from protocol.configuration.toml_text import parse_toml
from protocol.errors import BalloonError, UsageError
from protocol.units import GIB, MIB
from scripts.scenario.scenario import PolicySpec, Scenario, VmKind, VmSpec

SHIPPED: Final = Path(__file__).parent / "shipped"

LEAST_MEMORY: Final = 16 * MIB
MOST_EMULATED: Final = 1024 * GIB
"""Memory of an emulated machine: all its pages are kept."""
MOST_VMS: Final = 100_000
MOST_JITTER: Final = 0.5
NO_REPORTER: Final = "none"

_TIMES: Final = ("seconds", "hold", "rest", "lifetime", "tick")
"""Keys of workloads whose values are times."""


def shipped_scenarios() -> dict[str, Path]:
    """Return the files of the shipped scenarios by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def find_scenario(name: str) -> Path:
    """Return the file of a shipped scenario, or ``name`` itself where that is a path: it has a slash or ends in .toml.

    Raises:
        UsageError: no shipped scenario has that name.
    """
    shipped = shipped_scenarios()
    if name in shipped:
        return shipped[name]
    if "/" in name or name.endswith(".toml"):
        return Path(name)
    raise UsageError(f"no scenario is called {name!r}{nearest(name, shipped)} (shipped are {', '.join(shipped)})")


def load_scenario(path: Path) -> Scenario:
    """Read a scenario. Its name is that of the file.

    Raises:
        UsageError: a mistake in the file; the message has the file and the place in it.
        BalloonError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8") from error
    except OSError as error:
        raise BalloonError(f"{path}: {error.strerror}") from error
    try:
        return parse_scenario(text, path.stem, path.parent)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse_scenario(text: str, name: str, directory: Path) -> Scenario:
    """Return the scenario that ``text`` describes; traces are files in ``directory``.

    Raises:
        UsageError: a mistake; the message names its place.
    """
    file = Table(parse_toml(text))
    title = file.text("title", name)
    duration = file.seconds("duration", least=0.001)
    interval = file.seconds("sample", 0.25, least=0.001)
    seed = file.count("seed", 0, most=(1 << 31) - 1)
    jitter = file.share("jitter", 0.0, most=MOST_JITTER)
    host, tables, policy_table = file.table("host"), file.tables("vm"), file.table("policy")
    file.finish()  # before what [host] lacks: its name may be mistyped
    budget, swap = host.size("memory", least=1), host.size("swap", 0)
    host.finish()
    policy = _policy(policy_table)
    vms = [vm for number, table in enumerate(tables, 1) for vm in _vms(table, f"vm{number}", directory)]
    if not vms:
        raise UsageError("vm: a scenario has at least one virtual machine (write [[vm]])")
    if len(vms) > MOST_VMS:
        raise UsageError(f"vm: {len(vms)} virtual machines are more than {MOST_VMS}")
    name_of_most, machines = Counter(vm.name for vm in vms).most_common(1)[0]
    if machines > 1:
        raise UsageError(f"vm: {machines} virtual machines are called {name_of_most}")
    return Scenario(
        name=name,
        title=title,
        budget_bytes=budget,
        swap_bytes=swap,
        duration=duration,
        vms=tuple(vms),
        policy=policy,
        seed=seed,
        jitter=jitter,
        sample_interval=interval,
    )


def _policy(table: Table) -> PolicySpec:
    spec = PolicySpec(name=table.text("name", PolicySpec().name), parameters=table.rest())
    if ":" not in spec.name:  # a user's own code is not run to check a file
        _check_policy(table, "name", spec.name, {})
        for key, value in spec.parameters.items():
            _check_policy(table, key, spec.name, {key: value})
    return spec


def _check_policy(table: Table, key: str, name: str, parameters: Mapping[str, Value]) -> None:
    try:
        make_policy(name, parameters)
    except UsageError as error:
        raise table.mistake(key, str(error)) from error


def _vms(table: Table, default_name: str, directory: Path) -> list[VmSpec]:
    # One machine, or `count` of the same kind whose starts are `stagger` apart.
    count = table.count("count", 1, least=1, most=MOST_VMS)
    stagger = table.seconds("stagger", 0.0)
    name = table.text("name", default_name)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is None:
        raise table.mistake("name", f"{name!r} is not a name of letters, digits, '.', '_' and '-'")
    memory = table.size("memory", least=LEAST_MEMORY)
    reporter, reporting = _reporter(table)
    is_bridged = table.flag("bridge", False)
    spec = VmSpec(
        name=name,
        kind=VmKind(table.text("kind", VmKind.EMULATED.value, allowed=[kind.value for kind in VmKind])),
        memory_bytes=memory,
        start=table.seconds("start", 0.0),
        reporter=reporter,
        reporting=reporting,
        workloads=_workloads(table, directory),
        command=table.text("command") if table.has("command") else None,
        cpus=table.count("cpus", 1, least=1, most=256),
        profile=table.text("profile", "7.2", allowed=PROFILES),
        boot_bytes=table.size("boot", 0),
        overhead_bytes=table.size("overhead", 0),
        expendable=table.flag("expendable", False),
        has_network=table.flag("network", is_bridged),
        is_bridged=is_bridged,
    )
    table.finish()
    _check(table, spec)
    if count == 1:
        return [spec]
    width = len(str(count))
    return [
        replace(spec, name=f"{name}-{number + 1:0{width}}", start=spec.start + number * stagger)
        for number in range(count)
    ]


def _check(table: Table, spec: VmSpec) -> None:
    if spec.memory_bytes % (4 * MIB):
        raise table.mistake("memory", f"{spec.memory_bytes} bytes are not a multiple of 4 MiB")
    if spec.is_bridged and not spec.has_network:
        raise table.mistake("bridge", "only a network namespace has one, and network is false")
    if spec.boot_bytes >= spec.memory_bytes:
        raise table.mistake("boot", "not less than the machine's memory")
    if spec.kind is VmKind.LINUX and spec.workloads:
        raise table.mistake("workloads", "a real kernel runs a command instead (write command = ...)")
    if spec.kind is not VmKind.LINUX and spec.command is not None:
        raise table.mistake("command", f'a machine of kind "{spec.kind.value}" has workloads instead')
    if spec.kind is VmKind.EMULATED and spec.memory_bytes > MOST_EMULATED:
        raise table.mistake("memory", "more than 1 TiB")


def _reporter(table: Table) -> tuple[str | None, dict[str, float | int]]:
    name = table.text("reporter", "boundary", allowed=[*REPORTERS, NO_REPORTER])
    constants = table.table("reporting")
    given: dict[str, float | int] = {}
    for key in ("order", "capacity", "high_water_mark"):
        if constants.has(key):
            given[key] = constants.count(key)
    if constants.has("delay"):
        given["delay"] = constants.seconds("delay")
    constants.finish()
    if name == NO_REPORTER:
        if given:
            raise table.mistake("reporting", "constants of a reporter, but the reporter is none")
        return None, given
    values: dict[str, Any] = given
    try:
        make_reporter(name, PageAllocator(LEAST_MEMORY >> 12), **values)
    except UsageError as error:
        raise table.mistake("reporting", error) from error
    return name, given


def _workloads(table: Table, directory: Path) -> tuple[str, ...]:
    texts = list(table.texts("workloads"))
    places = [f"workloads[{number}]" for number in range(len(texts))]
    phases = table.tables("phase")
    if texts and phases:
        raise table.mistake("phase", "a machine has workloads or phases, not both")
    for number, phase in enumerate(phases):
        texts.append(_phase(phase))
        places.append(f"phase[{number}]")
    workloads = []
    for place, text in zip(places, texts, strict=True):
        kind, _, rest = text.partition(":")
        if kind not in WORKLOAD_NAMES:
            near = nearest(kind, WORKLOAD_NAMES)
            raise table.mistake(place, f"unknown workload {kind!r}{near} (known are {', '.join(WORKLOAD_NAMES)})")
        workload = f"{TRACE}:{directory / rest}" if kind == TRACE else text
        try:
            parse_workload(workload)
        except BalloonError as error:
            raise table.mistake(place, error) from error
        workloads.append(workload)
    return tuple(workloads)


def _phase(table: Table) -> str:
    # As balloon-guest takes it: NAME:key=value,...
    name = table.text("workload")
    if name == TRACE:
        return f"{TRACE}:{table.text('file')}"
    items = []
    for key, value in table.rest().items():
        if isinstance(value, str) and key in _TIMES:
            try:
                value = parse_seconds(value)
            except UsageError as error:
                raise table.mistake(key, error) from error
        items.append(f"{key}={value}")
    return f"{name}:{','.join(items)}" if items else name
