"""Debian packages of the kernel and busybox, fetched once into the user's cache.

Fetching needs no root: ``apt-get download`` and ``dpkg -x`` write where they are told. A cache is either whole or
absent: everything is unpacked beside its final name and then renamed, so concurrent launchers do not interfere.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from protocol.errors import BalloonError

KERNEL_PROGRAM = "linux.uml"
PACKAGES = ("user-mode-linux", "busybox-static")
_CACHE_NAME = "vhost-user-balloon"
_INSTALL_HINT = f"install the packages {' and '.join(PACKAGES)}, or give --kernel and --modules"
Progress = Callable[[str], None]


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Return the project's directory in the user's cache, by the XDG base directory rules."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / _CACHE_NAME


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


def package_cache(progress: Progress) -> Path:
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
        if not (final / "busybox").is_file():  # else another launcher was quicker, and its cache serves
            raise


def download_packages(packages: Sequence[str], scratch: Path, progress: Progress) -> list[Path]:
    """Download Debian packages to the empty directory ``scratch``; return their files in this order.

    The system's package lists are tried first, then fresh ones in ``scratch``.

    Raises:
        BalloonError: a package cannot be downloaded.
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
        # The system's hooks may fail for lack of privilege although the lists arrived: the download decides.
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
    """Run a program quietly in ``directory``. Raises :class:`BalloonError` with its first error message."""
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
