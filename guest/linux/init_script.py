"""The scripts that the guest runs: process 1 and COMMAND.

The kernel boots from a small directory of the run (the *control root*: busybox, the balloon module, ``init``), mounts
the host's file system read-only, makes that its root and starts COMMAND there. Its consoles and what they carry::

    tty0   kernel messages           -> the kernel log
    tty1   COMMAND's terminal        <-> a pseudo terminal, when the launcher itself runs on a terminal
    tty2   COMMAND's standard input  <-  frames: a decimal length, a newline, that many bytes; length 0 is end of file
    tty3   COMMAND's standard output -> plain bytes
    tty4   COMMAND's standard error  -> plain bytes
    tty5   the control line          <-> one line a message, see :mod:`guest.linux.control_line`

Why frames: closing the host's end of a console hangs it up, and the kernel then drops what was not read yet.
Why pipes and ``cat`` in between: COMMAND must not take its standard output for a terminal unless
the launcher's is one.
"""

import re
import shlex
from collections.abc import Mapping, Sequence

HOST_ROOT = "/run/host"
HOME = "/tmp/home"
HIDDEN_BY_GUEST = ("/tmp", "/run", "/dev", "/proc", "/sys")
"""Directories of the host that the guest covers with its own file systems; ``/run/host`` shows the host's."""


# Variables of the launcher's environment that name things which the guest does not have.
_NOT_FOR_GUEST = frozenset(
    {"HOME", "TMPDIR", "TMP", "TEMP", "PWD", "OLDPWD", "SHLVL", "_", "XDG_RUNTIME_DIR", "DISPLAY", "WAYLAND_DISPLAY"}
    | {"DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "LINES", "COLUMNS"}
)


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def visible_in_guest(path: str) -> str:
    """Return where the guest finds the host's absolute ``path``: below ``/run/host`` if the guest covers it."""
    for hidden in HIDDEN_BY_GUEST:
        if path == hidden or path.startswith(hidden + "/"):
            return HOST_ROOT + path
    return path


def command_script(argv: Sequence[str], *, directory: str, environment: Mapping[str, str]) -> str:
    """Return the shell script that becomes COMMAND: process id, ``booted``, environment, working directory, ``exec``.

    Every word is quoted, so any argument passes, also with newlines and quotes. ``argv[0]`` must have a slash: busybox
    would else run an applet of its own where the host has a program of that name.
    """
    guest_environment = {
        name: value for name, value in environment.items() if _VARIABLE.fullmatch(name) and name not in _NOT_FOR_GUEST
    }
    guest_environment.setdefault("PATH", _DEFAULT_PATH)
    guest_environment.setdefault("TERM", "dumb")
    guest_environment["HOME"] = HOME
    lines = ["echo $$ >/run/command", "read -r release </proc/sys/kernel/osrelease", 'echo "booted $release" >&5']
    lines.append("exec 5>&- 6>&-")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(guest_environment.items())]
    lines.append(f"cd {shlex.quote(visible_in_guest(directory))} 2>/dev/null || cd {HOME}")
    lines.append("exec " + " ".join(shlex.quote(word) for word in argv))
    return "\n".join(lines) + "\n"


TELL_MEMORY = r"""/^Node/ && NF == 4 { zone = $2 $4 }
$1 == "pages" && $2 == "free" { free[zone] = $3 }
$1 == "low" { low[zone] = $2 }
$1 == "count:" { pcp[zone] += $2 }
/^Node/ && NF > 4 {
    zone = $2 $4
    zones = zones ";" $4 " " free[zone] + 0 " " low[zone] + 0 " " pcp[zone] + 0
    for (order = 5; order <= NF; order++) zones = zones " " $order
}
$1 == "MemTotal:" { total = $2 }
$1 == "Cached:" { cached = $2 }
$1 == "Shmem:" { shmem = $2 }
$1 == "Buffers:" { buffers = $2 }
END { print total + 0, cached + 0, shmem + 0, buffers + 0 zones }
"""
"""The awk program that makes one line of /proc/zoneinfo, /proc/buddyinfo and /proc/meminfo, read in this order."""

# Runs as process 1 of the guest. @WORDS@ are replaced by init_script().
_INIT = r"""#!/busybox sh
B=/busybox
fail() { echo "failed $*" >/dev/tty5; $B poweroff -f; }
$B stty raw -echo </dev/tty5 || fail "stty on the control line"
exec 5<>/dev/tty5
$B mount -t hostfs -o ro,/ none /host || fail "mount of the host's file system"
$B mount -t proc none /host/proc || fail "mount of /proc"
$B mount -t sysfs none /host/sys || fail "mount of /sys"
$B mount -t devtmpfs none /host/dev || fail "mount of /dev"
$B mount -t tmpfs -o mode=1777,size=90% none /host/tmp || fail "mount of /tmp"
$B mount -t tmpfs -o mode=755 none /host/run || fail "mount of /run"
$B mkdir -p /host/dev/pts /host/dev/shm /host/run/host /host/run/control /host/run/lock /host/tmp/home
$B mount -t devpts -o mode=620,ptmxmode=666 none /host/dev/pts
$B mount -t tmpfs -o mode=1777 none /host/dev/shm
$B mount -t hostfs -o ro,/ none /host/run/host
$B ln -snf /proc/self/fd /host/dev/fd
$B ln -snf fd/0 /host/dev/stdin
$B ln -snf fd/1 /host/dev/stdout
$B ln -snf fd/2 /host/dev/stderr
cd /host
$B pivot_root . run/control || fail "pivot_root"
B=/run/control/busybox
$B hostname linux
$B ip link set lo up

[ ! -e /run/control/virtio_balloon.ko ] || $B insmod /run/control/virtio_balloon.ko || fail "insmod virtio_balloon"
device=
for device in /sys/bus/virtio/drivers/virtio_balloon/virtio*; do
    [ -e "$device" ] || fail "the balloon driver found no device"
    read -r features <"$device/features"
    echo "balloon ${device##*/} $features" >&5
    break
done

mkfifo() { $B mkfifo -m 600 "/run/$1"; }
pumps=
input=
@STREAMS@

listen() {
    while read -r verb argument <&5; do
        case $verb in
            signal)
                read -r command </run/command
                kill "-$argument" "-$command"
                kill -CONT "-$command"
                ;;
            memory) echo "memory $($B awk '@TELL_MEMORY@' /proc/zoneinfo /proc/buddyinfo /proc/meminfo)" >&5 ;;
            close) eval "kill -KILL \$$argument" ;;
        esac
    done
}
listen 2>/dev/null &
listener=$!
# Not with "&": that would make COMMAND ignore interrupts. In parentheses: else "Terminated" goes to its standard error.
(exec $B env -i $B setsid @CONTROLLING@ $B sh /run/control/command <@STDIN@ >@STDOUT@ 2>@STDERR@)
status=$?

# What COMMAND left running must not hold the outputs open: COMMAND is over, so is the guest.
for process in /proc/[0-9]*; do
    process=${process#/proc/}
    case " 1 $listener $pumps " in
        *" $process "*) ;;
        *) kill -KILL "$process" 2>/dev/null ;;
    esac
done
for pump in $pumps; do wait "$pump"; done 2>/dev/null
[ ! -t 6 ] || $B stty sane <&6 # returns when all output was written
echo "status $status" >&5
kill -KILL "$listener"
$B poweroff -f -n
"""


_READ_FRAMES = r"""$B stty raw -echo </dev/tty2
mkfifo stdin
{
    while read -r length && [ "$length" != 0 ]; do
        $B dd bs="$length" count=1 iflag=fullblock 2>/dev/null || break
    done
} </dev/tty2 >/run/stdin 5>&- &
input=$!
"""


_WRITE_PLAIN = r"""$B stty raw -echo </dev/@TTY@
mkfifo @NAME@
$B cat </run/@NAME@ >/dev/@TTY@ 5>&- &
@NAME@=$!
pumps="$pumps $!"
"""


def init_script(*, terminal: bool, separate_stderr: bool, window: tuple[int, int] = (24, 80)) -> str:
    """Return the script that process 1 runs.

    Args:
        terminal: COMMAND's standard input and output are the guest's terminal, else pipes.
        separate_stderr: COMMAND's standard error is a pipe of its own; always so without a terminal.
        window: rows and columns of the terminal.
    """
    streams: list[str] = []
    if terminal:
        rows, columns = window
        # Held open to the end: on its last close the kernel hangs up the host's pseudo terminal.
        streams.append(f"exec 6<>/dev/tty1\n$B stty sane rows {rows} cols {columns} <&6\n")
    else:
        streams.append(_READ_FRAMES)
        streams.append(_WRITE_PLAIN.replace("@NAME@", "stdout").replace("@TTY@", "tty3"))
    if separate_stderr or not terminal:
        streams.append(_WRITE_PLAIN.replace("@NAME@", "stderr").replace("@TTY@", "tty4"))
    words = {
        "@STREAMS@": "".join(streams),
        "@TELL_MEMORY@": TELL_MEMORY,
        "@CONTROLLING@": "-c" if terminal else "",
        "@STDIN@": "/dev/tty1" if terminal else "/run/stdin",
        "@STDOUT@": "/dev/tty1" if terminal else "/run/stdout",
        "@STDERR@": "/run/stderr" if separate_stderr or not terminal else "/dev/tty1",
    }
    script = _INIT
    for word, text in words.items():
        script = script.replace(word, text)
    return script
