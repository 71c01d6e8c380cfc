"""The guest's kernel and busybox: given, or fetched once as Debian packages into the user's cache.

Must not know: QEMU.
"""

import lzma
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guest.linux_packages import cache_directory, download_packages, locate_busybox, run_tool
from protocol.errors import BalloonError
from scripts.emulator.archive import build_archive, directory, program
from scripts.emulator.command import init_script
from scripts.emulator.modules import insertion_order

META_PACKAGE: Final = "linux-image-cloud-amd64"
"""Depends on Debian's newest kernel for virtual machines of the release that this system is."""

_DIRECTORIES: Final = ("bin", "dev", "modules", "proc", "sys", "tmp")


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel image, the directory somewhere below which its modules are, and a static busybox."""

    image: Path
    modules: Path
    busybox: Path


def locate_kernel(image: Path | None, modules: Path | None, progress: Callable[[str], None]) -> GuestKernel:
    """Return the kernel of the user's choice, else Debian's, fetched if it is not in the cache.

    Raises:
        BalloonError: it cannot be fetched.
    """
    busybox = locate_busybox(progress)
    if image is not None and modules is not None:
        return GuestKernel(image, modules, busybox)
    parent = cache_directory(os.environ)
    final = parent / "linux-cloud-x86_64"
    if not (final / "vmlinuz").is_file():
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="fetching-", dir=parent, ignore_cleanup_errors=True) as scratch:
                _fetch(Path(scratch), final, progress)
        except OSError as error:
            raise BalloonError(f"cannot fetch a kernel to {parent}: {error.strerror or error}") from error
    return GuestKernel(final / "vmlinuz", final / "modules", busybox)


def _fetch(scratch: Path, final: Path, progress: Callable[[str], None]) -> None:
    for name in ("meta", "image"):
        (scratch / name).mkdir()
    [meta] = download_packages([META_PACKAGE], scratch / "meta", progress)
    depends = subprocess.run(["dpkg-deb", "-f", str(meta), "Depends"], capture_output=True, text=True, check=False)
    found = re.search(r"linux-image-[0-9][^ ,]*", depends.stdout)
    if found is None:
        raise BalloonError(f"{META_PACKAGE} names no kernel: {depends.stdout.strip() or depends.stderr.strip()}")
    [package] = download_packages([found[0]], scratch / "image", progress)
    progress(f"unpacking {package.name}")
    run_tool(["dpkg", "-x", str(package), str(scratch / "unpacked")], scratch)
    whole = scratch / "whole"
    whole.mkdir()
    next((scratch / "unpacked/boot").glob("vmlinuz-*")).rename(whole / "vmlinuz")
    modules = next(path for path in (scratch / "unpacked").glob("**/lib/modules") if path.is_dir())
    modules.rename(whole / "modules")
    os.sync()  # a cache that survives a power failure under its final name must be whole
    try:
        whole.rename(final)
    except OSError:
        if not (final / "vmlinuz").is_file():  # else somebody else was quicker: theirs is as good
            raise


def read_modules(top: Path) -> dict[str, bytes]:
    """Return the content of all virtio modules below ``top`` by name, decompressed.

    Raises:
        BalloonError: one is compressed in a way that Python cannot undo.
    """
    modules: dict[str, bytes] = {}
    for path in top.glob("**/virtio*.ko*"):
        name, _, kind = path.name.partition(".")
        data = path.read_bytes()
        if kind not in ("ko", "ko.xz"):
            raise BalloonError(f"{path}: only plain modules and those compressed with xz can be read")
        modules[name.replace("-", "_")] = lzma.decompress(data) if kind == "ko.xz" else data
    return modules


def build_initrd(kernel: GuestKernel) -> bytes:
    """Return the guest's whole file system: busybox, the modules that the balloon needs, and what to do with them.

    Raises:
        BalloonError: the kernel has no module of the balloon driver.
    """
    modules = read_modules(kernel.modules)
    order = insertion_order(modules)
    entries = [directory(name) for name in _DIRECTORIES]
    entries.append(program("bin/busybox", kernel.busybox.read_bytes()))
    entries += [program(f"modules/{name}.ko", modules[name]) for name in order]
    entries.append(program("init", init_script(order).encode()))
    return build_archive(entries)
