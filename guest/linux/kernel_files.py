"""The files that a boot needs: kernel, balloon module and busybox, of the options, the system or the package cache."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.linux.debian_packages import KERNEL_PROGRAM, Progress, is_static, package_cache
from protocol.errors import BalloonError

SYSTEM_MODULES = Path("/usr/lib/uml/modules")
NEEDED_OPTIONS = ("CONFIG_VIRTIO_UML", "CONFIG_PAGE_REPORTING", "CONFIG_HOSTFS", "CONFIG_DEVTMPFS", "CONFIG_TMPFS")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxFiles:
    """The files of a boot. ``module`` is ``None`` for a kernel that has the balloon driver built in."""

    kernel: Path
    release: str
    module: Path | None
    busybox: Path


def locate(*, kernel: Path | None, modules: Path | None, progress: Progress) -> LinuxFiles:
    """Return kernel, module and busybox; fetch those that neither the options nor the system have.

    Raises:
        BalloonError: an option names a file that is missing or does not fit, a missing file cannot be fetched, or the
            kernel does not run here.
    """
    if modules is not None and not modules.is_dir():
        raise BalloonError(f"--modules {modules}: no such directory")
    if kernel is not None:
        if not (kernel.is_file() and os.access(kernel, os.X_OK)):
            raise BalloonError(f"--kernel {kernel}: no such program")
        search = [modules] if modules else [kernel.resolve().parent.parent / "lib/uml/modules", SYSTEM_MODULES]
    else:
        kernel, default_modules = _installed_kernel() or _cached_kernel(progress)
        search = [modules or default_modules]
    release, built_in = inspect_kernel(kernel)
    module = None if built_in else find_module(search, release)
    return LinuxFiles(kernel=kernel.resolve(), release=release, module=module, busybox=locate_busybox(progress))


def locate_busybox(progress: Progress) -> Path:
    """Return a static busybox, the system's or a fetched one.

    Raises:
        BalloonError: it cannot be fetched.
    """
    return _installed_busybox() or package_cache(progress) / "busybox"


def _installed_kernel() -> tuple[Path, Path] | None:
    program = shutil.which(KERNEL_PROGRAM)
    if program is None or not SYSTEM_MODULES.is_dir():
        return None
    return Path(program), SYSTEM_MODULES


def _cached_kernel(progress: Progress) -> tuple[Path, Path]:
    cache = package_cache(progress)
    return cache / KERNEL_PROGRAM, cache / "modules"


def _installed_busybox() -> Path | None:
    program = shutil.which("busybox")
    return Path(program) if program is not None and is_static(Path(program)) else None


def inspect_kernel(kernel: Path) -> tuple[str, bool]:
    """Ask the kernel for its release and configuration; return the release and whether the balloon driver is built in.

    Raises:
        BalloonError: it does not run here, is not User Mode Linux, or lacks an option of :data:`NEEDED_OPTIONS`.
    """
    release = _ask(kernel, "--version").strip()
    if re.fullmatch(r"[0-9]+\.[0-9]+\S*", release) is None:
        raise BalloonError(f"{kernel} is not a User Mode Linux kernel: --version answers {release[:60]!r}")
    configuration = _ask(kernel, "--showconfig").splitlines()
    missing = [option for option in NEEDED_OPTIONS if f"{option}=y" not in configuration]
    if missing:
        raise BalloonError(f"the kernel {kernel} was built without {', '.join(missing)}")
    if "CONFIG_VIRTIO_BALLOON=y" in configuration:
        return release, True
    if "CONFIG_VIRTIO_BALLOON=m" not in configuration:
        raise BalloonError(f"the kernel {kernel} was built without CONFIG_VIRTIO_BALLOON")
    return release, False


def _ask(kernel: Path, option: str) -> str:
    try:
        answer = subprocess.run(
            [str(kernel), option], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BalloonError(f"cannot run the kernel {kernel}: {error}") from error
    if answer.returncode:
        why = answer.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {answer.returncode}"]
        raise BalloonError(f"the kernel {kernel} does not run here: {why[0]}")
    return answer.stdout.decode(errors="replace")


def find_module(search: Sequence[Path], release: str) -> Path:
    """Return ``virtio_balloon.ko`` for the kernel ``release``.

    A directory of ``search`` holds one directory a release, or is itself that of one.

    Raises:
        BalloonError: it is missing, or was built for another kernel.
    """
    others: dict[str, Path] = {}
    for directory in search:
        for path in sorted(directory.rglob("virtio_balloon.ko")):
            made_for = module_release(path.read_bytes())
            if made_for == release:
                return path
            others[made_for or "unknown"] = path
    where = " or ".join(str(directory) for directory in search)
    if others:
        made_for, path = next(iter(others.items()))
        raise BalloonError(f"{path} is for Linux {made_for}, the kernel is {release}: give --modules of the same build")
    raise BalloonError(f"no virtio_balloon.ko for Linux {release} in {where}: give --modules")


def module_release(module: bytes) -> str | None:
    """Return the kernel release that a module was built for, from ``vermagic`` in its ``.modinfo`` section."""
    match = re.search(rb"\0vermagic=([^ \0]+)", module)
    return match[1].decode("ascii", "replace") if match else None
