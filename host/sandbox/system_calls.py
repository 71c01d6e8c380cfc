"""The system calls that a worker may make: what its sessions, the interpreter, glibc and its threads need.

A call that is on no list fails as on a kernel that does not have it (ENOSYS), for which glibc knows another way.
"""

from typing import Final, NamedTuple

ALLOWED: Final = {
    "memory": ("brk madvise membarrier mmap mprotect mremap munmap"),
    "threads": (
        "exit exit_group futex get_robust_list getpid getppid gettid rseq sched_getaffinity sched_yield "
        "set_robust_list set_tid_address"
    ),
    "signals to itself": ("restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn sigaltstack"),
    "time": ("clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep"),
    "waiting": (
        "epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 pidfd_open pipe2 poll ppoll "
        "pselect6 select"
    ),
    "descriptors": (
        "close close_range dup dup2 dup3 fcntl fstat fstatfs io_destroy io_getevents io_pgetevents io_setup "
        "io_submit ioctl lseek newfstatat pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readv statx "
        "write writev"
    ),
    "memory files": ("fallocate ftruncate memfd_create"),
    "reading files": (
        "access faccessat faccessat2 getcwd getdents64 lstat open openat readlink readlinkat stat statfs"
    ),
    "sockets that it has": ("getpeername getsockname getsockopt recvfrom recvmsg sendmsg sendto setsockopt shutdown"),
    "about itself": ("getegid geteuid getgid getrandom getresgid getresuid getrusage getuid sysinfo times uname"),
}
"""Names of calls, by what they are for. What Landlock denies of them fails all the same."""

REFUSED: Final = (
    "accept accept4 bind bpf chdir chmod chown chroot connect fchmod fchmodat fchown fchownat fork "
    "io_uring_setup kill lchown link linkat listen mkdir mkdirat mknod mknodat mount pidfd_getfd "
    "pidfd_send_signal rename renameat renameat2 rmdir rt_sigqueueinfo rt_tgsigqueueinfo setgid setns "
    "setrlimit setuid socket symlink symlinkat tgkill tkill truncate umount2 unlink unlinkat unshare "
    "userfaultfd utimensat vfork"
)
"""Calls that fail with EPERM."""

ENDS: Final = "execve execveat process_vm_readv process_vm_writev ptrace"
"""Calls that end the process (SIGSYS): nothing in it makes them by mistake."""

_CLONE_THREAD: Final = 0x10000
_AF_UNIX: Final = 1
_PR_SET_NAME: Final = 15


class Condition(NamedTuple):
    """Argument ``number``, under ``mask``, has ``value``."""

    number: int
    value: int
    mask: int = 0xFFFF_FFFF_FFFF_FFFF


CONDITIONAL: Final[dict[str, tuple[Condition, ...]]] = {
    "clone": (Condition(0, _CLONE_THREAD, _CLONE_THREAD),),
    "socketpair": (Condition(0, _AF_UNIX),),
    "prctl": (Condition(0, _PR_SET_NAME),),
    "prlimit64": (Condition(0, 0), Condition(2, 0)),
}
"""Calls that are allowed if all conditions hold: threads and no processes, its own limits and no new ones."""
