"""Reading a kernel log: warnings, and the lines that say why a kernel is gone."""

import re

_TIME_STAMP = re.compile(r"^\[ *[0-9]+\.[0-9]+\] ?")
_WARNING = re.compile(
    r"\bWARNING: |\bBUG: |kernel BUG at|\bOops\b|Kernel panic|general protection fault|\bblocked for more than "
    r"|page allocation failure|Bad page state|self-detected stall|detected stalls"
    r"|pagealloc: (?:memory corruption|single bit error)"
)
_OUT_OF_MEMORY = re.compile(r"Out of memory: Killed process|oom-kill:")
_REASON = re.compile(
    r"Kernel panic|\bBUG: |kernel BUG at|not permitted|\b[Ff]ailed\b|Cannot|cannot|No such file|No space|not enough|"
    r"noexec|virtio_uml|deadlocked on memory|insmod"
)
# Lines of every healthy boot that look like a failure. The command line names our paths and devices.
_HARMLESS = re.compile(
    r"epollctl add err|Failed to initialize ubd|find_iomem failed|Operation not permitted$|^Kernel command line: "
)
_SHUT_DOWN = re.compile(r"^(reboot|sysrq): ")
_LOST_DAEMON = re.compile(r"\bvu_interrupt\b|\bvu_del_vqs\b|sending VHOST_USER_\w+ failed")
# crypto_wait_for_test: a slow machine is late with a self-test at boot, before any balloon (crypto/api.c).
_BOILERPLATE = re.compile(r"crypto_wait_for_test|end Kernel panic|^Modules linked in|^CPU: |^Call Trace|^RIP: |^Stack:")


def lines_of(log: str) -> list[str]:
    """Return the log's non-empty lines without time stamps and carriage returns."""
    lines = (_TIME_STAMP.sub("", line.strip("\r\0 ")) for line in log.splitlines())
    return [line.rstrip() for line in lines if line.strip()]


def kernel_warnings(log: str) -> list[str]:
    """Return the lines in which the kernel complains about itself: warnings, bugs, panics, stalls.

    The kill of a program that used up the guest's memory is excluded; see :func:`out_of_memory`.
    """
    return [line for line in lines_of(log) if _WARNING.search(line) and not _BOILERPLATE.search(line)]


def out_of_memory(log: str) -> str | None:
    """Return the line that reports the OOM kill of a program, ``None`` without one."""
    return next((line for line in lines_of(log) if _OUT_OF_MEMORY.search(line)), None)


def panic_reason(log: str) -> str | None:
    """Return the reason of the kernel's panic, ``None`` without a panic."""
    for line in lines_of(log):
        if "Kernel panic - not syncing: " in line and "end Kernel panic" not in line:
            return line.partition("Kernel panic - not syncing: ")[2].strip()
    return None


def shut_down(log: str) -> str | None:
    """Return the kernel's last line about a halt or reboot, ``None`` without one."""
    last = lines_of(log)[-1:]
    return last[0] if last and _SHUT_DOWN.search(last[0]) else None


def lost_daemon(log: str) -> bool:
    """Return whether the kernel noticed that the vhost-user daemon closed the connection."""
    return any(_LOST_DAEMON.search(line) for line in lines_of(log))


def excerpt(log: str, limit: int = 4) -> str:
    """Return the few lines of the log that explain why a kernel did not boot, joined by ``; ``."""
    lines = lines_of(log)
    telling = [line for line in lines if _REASON.search(line) and not _HARMLESS.search(line)]
    chosen = (telling or lines)[-limit:]
    return "; ".join(dict.fromkeys(chosen)) if chosen else "the kernel said nothing"
