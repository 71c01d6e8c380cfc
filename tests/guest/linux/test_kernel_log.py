"""What a kernel log says: warnings, the reason of a panic, a daemon that left."""

from guest.linux.kernel_log import excerpt, kernel_warnings, lost_daemon, out_of_memory, panic_reason, shut_down

HEALTHY = """\
Core dump limits :
\tsoft - 0
Checking that ptrace can change system call numbers...OK
[    0.000000] printk: debug: ignoring loglevel setting.
[    0.910000] SGI XFS with ACLs, security attributes, realtime, quota, no debug enabled
[    1.100000] Failed to initialize ubd device 0 :Couldn't determine size of device's file
[    1.540000] epollctl add err fd 23, Operation not permitted
[    2.200000] reboot: System halted
"""
DEADLOCKED = (
    HEALTHY
    + """\
[    5.100000] WARNING: CPU: 0 PID: 0 at arch/um/drivers/virtio_uml.c:816 vu_interrupt+0x8e/0xa0
[    5.100000] Modules linked in: virtio_balloon
[   11.620000] virtio-uml virtio-uml.0: sending VHOST_USER_SET_CONFIG failed: -32
[   11.640000] Out of memory: Killed process 709 (busybox) total-vm:2304kB, anon-rss:48kB
[   11.640000] Kernel panic - not syncing: System is deadlocked on memory
[   11.640000] ---[ end Kernel panic - not syncing: System is deadlocked on memory ]---
"""
)


def test_healthy_boot_has_nothing_to_say() -> None:
    assert kernel_warnings(HEALTHY) == []
    assert panic_reason(HEALTHY) is None
    assert not lost_daemon(HEALTHY)
    assert out_of_memory(HEALTHY) is None


def test_warning_and_panic_count_once_each() -> None:
    assert [line.split(":")[0] for line in kernel_warnings(DEADLOCKED)] == ["WARNING", "Kernel panic - not syncing"]


def test_free_page_without_its_pattern_is_a_warning() -> None:
    complaints = ["pagealloc: memory corruption", "pagealloc: single bit error"]
    log = HEALTHY + "".join(f"[    9.0] {line}\n" for line in complaints)
    assert kernel_warnings(log) == complaints


def test_panic_gives_its_reason() -> None:
    assert panic_reason(DEADLOCKED) == "System is deadlocked on memory"


def test_daemon_that_left_is_noticed() -> None:
    assert lost_daemon(DEADLOCKED)


def test_program_killed_for_want_of_memory_is_not_a_kernel_warning() -> None:
    log = HEALTHY + "[    9.0] Out of memory: Killed process 42 (hog) total-vm:1kB\n"
    assert kernel_warnings(log) == []
    assert out_of_memory(log) == "Out of memory: Killed process 42 (hog) total-vm:1kB"


def test_kernel_that_was_told_to_halt_says_so_last() -> None:
    assert shut_down(HEALTHY) == "reboot: System halted"
    assert shut_down(HEALTHY + "[    2.3] more\n") is None
    assert shut_down("") is None


def test_excerpt_prefers_what_tells_something() -> None:
    log = "[    0.1] Linux version\r\n[    0.2] insmod: can't insert 'x.ko': invalid module format\n[    0.3] more\n"
    assert excerpt(log) == "insmod: can't insert 'x.ko': invalid module format"
    assert excerpt("[    0.0] Kernel command line: virtio_uml.device=/x:5 init=/init\n" + log) == excerpt(log)
    assert excerpt("one\ntwo\n") == "one; two"
    assert excerpt("") == "the kernel said nothing"
