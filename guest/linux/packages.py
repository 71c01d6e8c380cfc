"""Where the kernel, its balloon module and busybox come from: the system, or Debian packages in the user's cache.

Fetching needs no root: ``apt-get download`` and ``dpkg -x`` write where they are told. A cache is either whole or not
there: everything is unpacked beside its final name and then renamed, so two launchers at once cannot harm each other.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BalloonError

KERNEL_PROGRAM = "linux.uml"
PACKAGES = ("user-mode-linux", "busybox-static")
SYSTEM_MODULES = Path("/usr/lib/uml/modules")
_CACHE_NAME = "vhost-user-balloon"
_NEEDED_OPTIONS = ("CONFIG_VIRTIO_UML", "CONFIG_PAGE_REPORTING", "CONFIG_HOSTFS", "CONFIG_DEVTMPFS", "CONFIG_TMPFS")
_INSTALL_HINT = f"install the packages {' and '.join(PACKAGES)}, or give --kernel and --modules"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxFiles:
    """What a boot needs. ``module`` is ``None`` for a kernel that has the balloon driver built in."""

    kernel: Path
    release: str
    module: Path | None
    busybox: Path


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Return the project's directory in the user's cache, by the XDG base directory rules."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / _CACHE_NAME


def locate(*, kernel: Path | None, modules: Path | None, progress: Progress) -> LinuxFiles:
    """Return kernel, module and busybox; fetch what neither the options nor the system have.

    Raises:
        BalloonError: an option names something that is not there or does not fit, something is missing and cannot be
            fetched, or the kernel does not run here.
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
    return _installed_busybox() or _cache(progress) / "busybox"


def _installed_kernel() -> tuple[Path, Path] | None:
    program = shutil.which(KERNEL_PROGRAM)
    if program is None or not SYSTEM_MODULES.is_dir():
        return None
    return Path(program), SYSTEM_MODULES


def _cached_kernel(progress: Progress) -> tuple[Path, Path]:
    cache = _cache(progress)
    return cache / KERNEL_PROGRAM, cache / "modules"


def _installed_busybox() -> Path | None:
    program = shutil.which("busybox")
    return Path(program) if program is not None and is_static(Path(program)) else None


def is_static(program: Path) -> bool:
    """Tell whether ``program`` is a 64-bit ELF file without a dynamic loader: no PT_INTERP (type 3) in its headers."""
    try:
        with program.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    if head[:6] != b"\x7fELF\x02\x01":
        return False
    offset = int.from_bytes(head[32:40], "little")
    size = int.from_bytes(head[54:56], "little")
    count = int.from_bytes(head[56:58], "little")
    types = (head[offset + index * size : offset + index * size + 4] for index in range(count))
    return b"\x03\0\0\0" not in types


def inspect_kernel(kernel: Path) -> tuple[str, bool]:
    """Ask the kernel for its release and configuration; return the release and whether the balloon driver is built in.

    Raises:
        BalloonError: it does not run here, is no User Mode Linux, or lacks an option that we need.
    """
    release = _ask(kernel, "--version").strip()
    if re.fullmatch(r"[0-9]+\.[0-9]+\S*", release) is None:
        raise BalloonError(f"{kernel} is not a User Mode Linux kernel: --version answers {release[:60]!r}")
    configuration = _ask(kernel, "--showconfig").splitlines()
    missing = [option for option in _NEEDED_OPTIONS if f"{option}=y" not in configuration]
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
        BalloonError: there is none, or only for other kernels.
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


def _cache(progress: Progress) -> Path:
    """Return the directory with the fetched files, fetching them first if it is not there."""
    if platform.machine() != "x86_64":
        raise BalloonError(f"Debian has no {PACKAGES[0]} for {platform.machine()}: give --kernel and --modules")
    parent = cache_directory(os.environ)
    final = parent / "linux-x86_64"
    if (final / "busybox").is_file():
        return final
    missing = [program for program in ("apt-get", "dpkg") if shutil.which(program) is None]
    if missing:
        raise BalloonError(f"no Linux kernel here, and none can be fetched without {missing[0]}: {_INSTALL_HINT}")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=parent, ignore_cleanup_errors=True) as scratch:
            _fetch(Path(scratch), final, progress)
    except OSError as error:
        raise BalloonError(f"cannot fetch a Linux kernel to {parent}: {error.strerror or error}") from error
    return final


def _fetch(scratch: Path, final: Path, progress: Progress) -> None:
    """Download and unpack the packages below ``scratch``, then rename what we need of them to ``final``."""
    for package, pattern in zip(
        download_packages(PACKAGES, scratch, progress), (KERNEL_PROGRAM, "busybox"), strict=True
    ):
        progress(f"unpacking {package.name}")
        unpacked = scratch / pattern
        run_tool(["dpkg", "-x", str(package), str(unpacked)], scratch)
    whole = scratch / "whole"
    whole.mkdir()
    (scratch / KERNEL_PROGRAM / "usr/bin" / KERNEL_PROGRAM).rename(whole / KERNEL_PROGRAM)
    (scratch / KERNEL_PROGRAM / "usr/lib/uml/modules").rename(whole / "modules")
    busybox = next(
        (
            scratch / "busybox" / where
            for where in ("usr/bin/busybox", "bin/busybox")
            if (scratch / "busybox" / where).is_file()
        ),
        None,
    )
    if busybox is None or not is_static(busybox):
        raise BalloonError(f"the package {PACKAGES[1]} holds no static busybox: {_INSTALL_HINT}")
    busybox.rename(whole / "busybox")
    os.sync()  # a cache that survives a power failure under its final name must be whole
    try:
        whole.rename(final)
    except OSError:
        if not (final / "busybox").is_file():  # else somebody else was quicker: theirs is as good
            raise


def download_packages(packages: Sequence[str], scratch: Path, progress: Progress) -> list[Path]:
    """Download Debian packages to the empty directory ``scratch``; return their files in this order.

    With the system's package lists, else with fresh ones of our own.

    Raises:
        BalloonError: one of them cannot be had.
    """
    here = ["-o", "APT::Sandbox::User=root", "-o", "Dir::Cache=" + str(scratch / "cache")]
    (scratch / "cache/archives/partial").mkdir(parents=True)
    state = scratch / "state"
    (state / "lists/partial").mkdir(parents=True)
    progress("downloading " + " and ".join(packages))
    try:
        run_tool(["apt-get", "-q", *here, "download", *packages], scratch)
    except BalloonError:
        own = [*here, "-o", f"Dir::State={state}", "-o", "Dir::State::status=/var/lib/dpkg/status"]
        own += ["-o", "APT::Update::Error-Mode=any"]  # else an unreachable source is a mere warning
        progress("fetching package lists")
        # Hooks of the system may fail for want of rights although the lists arrived: only the download decides.
        problem = _try(["apt-get", "-q", *own, "update"], scratch)
        progress("downloading " + " and ".join(packages))
        try:
            run_tool(["apt-get", "-q", *own, "download", *packages], scratch)
        except BalloonError as error:
            raise BalloonError(f"cannot fetch a Linux kernel: {problem or error}; {_INSTALL_HINT}") from error
    found = [next(scratch.glob(f"{package}_*.deb"), None) for package in packages]
    if None in found:
        raise BalloonError(f"apt-get downloaded nothing: {_INSTALL_HINT}")
    return [path for path in found if path is not None]


def _try(command: Sequence[str], directory: Path) -> str | None:
    try:
        run_tool(command, directory)
    except BalloonError as error:
        return str(error)
    return None


def run_tool(command: Sequence[str], directory: Path) -> None:
    """Run a program quietly in ``directory``. Raises :class:`BalloonError` with its first complaint."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(
        list(command),
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if result.returncode:
        lines = (result.stderr or result.stdout).decode(errors="replace").splitlines()
        complaint = next((line for line in lines if line.startswith(("E:", "dpkg", "Err"))), None)
        reason = complaint or (lines[-1] if lines else f"exit status {result.returncode}")
        raise BalloonError(f"{Path(command[0]).name}: {reason.removeprefix('E: ').strip()}")
