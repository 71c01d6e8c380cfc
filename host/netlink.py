"""What tools ask of the kernel by netlink: the cost of a process, and network namespaces. The only file that imports
pyroute2.

TaskStats says which process paid for a shortage of memory: how long it was delayed by direct reclaim, by compaction, or
by waiting for pages that were just evicted (thrashing). Importing pyroute2 takes a tenth of a second: import this
module where it is used.

pyroute2 0.9.7 decodes exactly version 15 of ``struct taskstats`` and decodes any later one as a version without delays
(https://docs.kernel.org/accounting/taskstats-struct.html). Here it is only the transport; the structure is decoded
below.
"""

import contextlib
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyroute2 import IPRoute, NetNS, netns
from pyroute2.netlink import NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.taskstats import TASKSTATS_CMD_GET, AsyncTaskStats, TaskStats, tcmd

from protocol.errors import BalloonError

ESRCH: Final = 3
NANOSECONDS_PER_SECOND: Final = 1_000_000_000

# struct taskstats as every version but 15 has it: new fields only at the end. A field is (offset, struct code); the
# delays are pairs of u64, count and total nanoseconds. Version 15 alone put two extra u64 (longest, shortest) into
# each pair and so moved all later fields; version 16 moved those to the end.
_VERSION: Final = struct.Struct("<H")
_PAIR: Final = struct.Struct("<QQ")
_U64: Final = struct.Struct("<Q")
_HIWATER_RSS: Final = 200  # KiB
_PAIRS: Final = {"freepages": 312, "thrashing": 328, "compact": 352, "wpcopy": 400}

_VERSION_WITH_EXTREMES: Final = 15
_HIWATER_RSS_15: Final = 248
_PAIRS_15: Final = {"freepages": 360, "thrashing": 392, "compact": 432, "wpcopy": 496}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """How often a process was delayed for one reason, and for how many seconds in all."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatistics:
    """The part of ``struct taskstats`` that concerns memory. A delay that this version does not have is ``None``."""

    version: int
    peak_resident_bytes: int
    freepages: Delay | None
    thrashing: Delay | None
    compact: Delay | None
    wpcopy: Delay | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCost:
    """What one process, all its threads together, has cost the host so far.

    ``source`` says where the figures are from: ``taskstats v16``, or ``/proc`` and why. Unknown is ``None``, never 0:
    the delays without TaskStats or while the sysctl ``kernel.task_delayacct`` is 0, which is the kernel's default (a
    process started before it became 1 is not measured either); the peak of a process that has ended and is not reaped.
    """

    source: str
    pid: int
    peak_resident_bytes: int | None
    minor_faults: int
    major_faults: int
    direct_reclaim_count: int | None = None
    direct_reclaim_seconds: float | None = None
    thrashing_count: int | None = None
    thrashing_seconds: float | None = None
    compaction_count: int | None = None
    compaction_seconds: float | None = None
    write_copy_count: int | None = None
    write_copy_seconds: float | None = None


def decode_taskstats(data: bytes) -> TaskStatistics:
    """Decode the bytes of one ``struct taskstats``, of any version.

    Raises:
        ValueError: the bytes end before the peak resident size.
    """
    if len(data) < _VERSION.size:
        raise ValueError(f"struct taskstats of {len(data)} bytes")
    (version,) = _VERSION.unpack_from(data)
    extremes = version == _VERSION_WITH_EXTREMES
    peak_offset, pairs = (_HIWATER_RSS_15, _PAIRS_15) if extremes else (_HIWATER_RSS, _PAIRS)
    if len(data) < peak_offset + _U64.size:
        raise ValueError(f"struct taskstats of version {version} with {len(data)} bytes")
    (peak,) = _U64.unpack_from(data, peak_offset)
    delays: dict[str, Delay | None] = {}
    for name, offset in pairs.items():
        delays[name] = None
        if len(data) >= offset + _PAIR.size:
            count, total = _PAIR.unpack_from(data, offset)
            delays[name] = Delay(count=count, seconds=total / NANOSECONDS_PER_SECOND)
    return TaskStatistics(version=version, peak_resident_bytes=peak * 1024, **delays)


# pyroute2 has no types, hence the ignores. Its base classes pick a decoder by version; `cdata` keeps the bytes instead.
class _Message(genlmsg):  # type: ignore[misc]
    class aggregate(nla):  # type: ignore[misc]
        nla_map = (
            ("TASKSTATS_TYPE_UNSPEC", "none"),
            ("TASKSTATS_TYPE_PID", "uint32"),
            ("TASKSTATS_TYPE_TGID", "uint32"),
            ("TASKSTATS_TYPE_STATS", "cdata"),
        )

    nla_map = (
        *aggregate.nla_map,
        ("TASKSTATS_TYPE_AGGR_PID", "aggregate"),
        ("TASKSTATS_TYPE_AGGR_TGID", "aggregate"),
    )


class _AsyncSocket(AsyncTaskStats):  # type: ignore[misc]
    async def bind(self) -> None:
        # One class further up: AsyncTaskStats.bind would register its own message class.
        await super(AsyncTaskStats, self).bind("TASKSTATS", _Message)

    async def query(self, attribute: str, pid: int) -> object:
        message = tcmd()
        message["cmd"] = TASKSTATS_CMD_GET
        message["version"] = 1
        message["attrs"].append([attribute, pid])
        return await self.nlm_request(message, self.prid, msg_flags=NLM_F_REQUEST)


class _Socket(TaskStats):  # type: ignore[misc]
    async_class = _AsyncSocket

    def query(self, attribute: str, pid: int) -> bytes:
        (reply,) = self._run_sync_cleanup(self.asyncore.query, attribute, pid)
        (aggregate,) = (value for _, value in reply["attrs"] if value is not None)
        return bytes(aggregate.get_attr("TASKSTATS_TYPE_STATS"))


class TaskStatsConnection:
    """A netlink socket for TaskStats, opened with the first question: opening costs several times what a question does.

    Each question runs an event loop of its own: call it through ``asyncio.to_thread`` from a coroutine.
    """

    def __init__(self) -> None:
        self._socket: _Socket | None = None

    def query(self, pid: int) -> tuple[bytes, bytes]:
        """Return ``struct taskstats`` of the task ``pid`` and of the thread group that it leads, as the kernel sent
        them.

        Raises:
            NetlinkError: the kernel refused: EPERM without CAP_NET_ADMIN, ESRCH for no such process.
            OSError: no netlink socket here.
        """
        if self._socket is None:
            self._socket = _Socket()
            self._socket.bind()
        return (
            self._socket.query("TASKSTATS_CMD_ATTR_PID", pid),
            self._socket.query("TASKSTATS_CMD_ATTR_TGID", pid),
        )

    def close(self) -> None:
        """Close the socket; a further question opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def query_taskstats(pid: int) -> tuple[bytes, bytes]:
    """Ask once, on a connection of its own; see :meth:`TaskStatsConnection.query`."""
    connection = TaskStatsConnection()
    try:
        return connection.query(pid)
    finally:
        connection.close()


def delay_accounting_enabled(proc: Path = Path("/proc")) -> bool:
    """Whether this kernel measures delays at present. The sysctl is only read: it is the operator's."""
    try:
        return (proc / "sys/kernel/task_delayacct").read_text().strip() == "1"
    except OSError:
        return False


def process_cost(pid: int, proc: Path = Path("/proc"), connection: TaskStatsConnection | None = None) -> ProcessCost:
    """Return what the process ``pid`` has cost so far, by TaskStats where that is permitted, otherwise from ``/proc``.

    Blocks for several milliseconds, less on a ``connection`` that was used before, and runs an event loop of its own:
    call it through ``asyncio.to_thread`` from a coroutine.

    Raises:
        BalloonError: the process does not exist.
    """
    try:
        base = _cost_from_proc(pid, proc)
    except OSError as error:
        raise BalloonError(f"no process {pid}") from error
    try:
        query = query_taskstats if connection is None else connection.query
        task, group = (decode_taskstats(data) for data in query(pid))
    except NetlinkError as error:
        if error.code == ESRCH:
            raise BalloonError(f"no process {pid}") from error
        return _because(base, error.args[1] if len(error.args) > 1 else str(error))
    except (OSError, ValueError) as error:
        return _because(base, str(error))
    # The kernel fills the peak in for a task only and sums the delays of all threads for the group only. Page faults
    # it gives for a single task; those of the whole process, ended threads included, are in /proc/PID/stat.
    known = delay_accounting_enabled(proc)
    reclaim, thrashing, compaction, copy = (
        delay if known else None for delay in (group.freepages, group.thrashing, group.compact, group.wpcopy)
    )
    return ProcessCost(
        source=f"taskstats v{task.version}",
        pid=pid,
        peak_resident_bytes=task.peak_resident_bytes or None,
        minor_faults=base.minor_faults,
        major_faults=base.major_faults,
        direct_reclaim_count=reclaim.count if reclaim else None,
        direct_reclaim_seconds=reclaim.seconds if reclaim else None,
        thrashing_count=thrashing.count if thrashing else None,
        thrashing_seconds=thrashing.seconds if thrashing else None,
        compaction_count=compaction.count if compaction else None,
        compaction_seconds=compaction.seconds if compaction else None,
        write_copy_count=copy.count if copy else None,
        write_copy_seconds=copy.seconds if copy else None,
    )


def _because(cost: ProcessCost, reason: str) -> ProcessCost:
    # The figures of /proc with the reason why they are not TaskStats'.
    return ProcessCost(
        source=f"/proc (taskstats: {reason})",
        pid=cost.pid,
        peak_resident_bytes=cost.peak_resident_bytes,
        minor_faults=cost.minor_faults,
        major_faults=cost.major_faults,
    )


def _cost_from_proc(pid: int, proc: Path) -> ProcessCost:
    # VmHWM and the fault counters of all threads. Raises OSError if the process does not exist.
    directory = proc / str(pid)
    # The name in parentheses may itself hold spaces and parentheses, so the fields count from the last one.
    fields = (directory / "stat").read_text(errors="replace").rpartition(")")[2].split()
    peak = None
    for line in (directory / "status").read_text(errors="replace").split("\n"):
        if line.startswith("VmHWM:"):
            peak = int(line.split()[1]) * 1024
    return ProcessCost(
        source="/proc", pid=pid, peak_resident_bytes=peak, minor_faults=int(fields[7]), major_faults=int(fields[9])
    )


NAMESPACES: Final = Path(netns.NETNS_RUN_DIR)
"""Where named network namespaces are, those of ``ip netns`` too."""


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let signals wait. pyroute2 enters a namespace in a forked child, which it ends by SIGTERM: a handler of ours that
    raises an exception would unwind the stack there, and undo in the child what only the parent may undo."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_namespace(name: str) -> Path:
    """Make the network namespace ``name``, with its loopback up, and return its file.

    Raises:
        BalloonError: not permitted, or there is one of that name.
    """
    try:
        with _signals_held():
            netns.create(name)
            with NetNS(name) as inside:
                inside.link("set", index=1, state="up")
    except (OSError, NetlinkError) as error:
        raise BalloonError(_of_network(f"network namespace {name}", error)) from error
    return NAMESPACES / name


def remove_namespace(name: str) -> None:
    """Remove the name of a network namespace, which goes with its last process. Interfaces in it go too."""
    with contextlib.suppress(OSError):
        netns.remove(name)


def make_bridge(name: str) -> None:
    """Make a bridge without an address: it joins what is attached to it, and the host has no part in it.

    Raises:
        BalloonError: not permitted, or there is an interface of that name.
    """
    try:
        with IPRoute() as host:
            host.link("add", ifname=name, kind="bridge")
            host.link("set", index=host.link_lookup(ifname=name)[0], state="up")
    except (OSError, NetlinkError) as error:
        raise BalloonError(_of_network(f"bridge {name}", error)) from error


def attach(namespace: str, bridge: str, port: str) -> None:
    """Give ``namespace`` an interface ``eth0``, the other end of ``port``, which becomes a port of ``bridge``.

    Raises:
        BalloonError: not permitted, or one of them is missing.
    """
    try:
        with IPRoute() as host:
            peer = {"ifname": "eth0", "net_ns_fd": namespace}
            host.link("add", ifname=port, kind="veth", peer=peer)
            (master,), (index,) = host.link_lookup(ifname=bridge), host.link_lookup(ifname=port)
            host.link("set", index=index, master=master, state="up")
        with _signals_held(), NetNS(namespace) as inside:
            inside.link("set", index=inside.link_lookup(ifname="eth0")[0], state="up")
    except (OSError, ValueError, NetlinkError) as error:
        raise BalloonError(_of_network(f"interface {port}", error)) from error


def remove_interface(name: str) -> None:
    """Remove an interface of the host, if there is one of that name."""
    with contextlib.suppress(OSError, NetlinkError), IPRoute() as host:
        for index in host.link_lookup(ifname=name):
            host.link("del", index=index)


def _of_network(what: str, error: Exception) -> str:
    if isinstance(error, NetlinkError):
        return f"{what}: {error.args[1] if len(error.args) > 1 else error}"
    return f"{what}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
