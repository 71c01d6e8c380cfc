"""The guest's kernel and busybox: given, or fetched once as Debian packages into the user's cache."""

import lzma
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from guest.linux.debian_packages import cache_directory, download_packages, run_tool
from guest.linux.kernel_files import locate_busybox
from protocol.errors import BalloonError
from scripts.emulator.archive import build_archive, directory, program
from scripts.emulator.command import init_script
from scripts.emulator.modules import insertion_order

_DIRECTORIES: Final = ("bin", "dev", "modules", "proc", "sys", "tmp")


class KernelPackage(Enum):
    """A package that depends on the newest kernel of this system's Debian release."""

    CLOUD = "linux-image-cloud-amd64"
    GENERAL = "linux-image-amd64"

    @property
    def cache_name(self) -> str:
        """Its directory in the cache."""
        return "linux-cloud-x86_64" if self is KernelPackage.CLOUD else "linux-general-x86_64"


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel image, the directory somewhere below which its modules are, and a static busybox."""

    image: Path
    modules: Path
    busybox: Path


def locate_kernel(
    image: Path | None, modules: Path | None, package: KernelPackage, progress: Callable[[str], None]
) -> GuestKernel:
    """Return the kernel of the user's choice, else Debian's, fetched if it is not in the cache.

    Raises:
        BalloonError: it cannot be fetched.
    """
    busybox = locate_busybox(progress)
    if image is not None and modules is not None:
        return GuestKernel(image, modules, busybox)
    parent = cache_directory(os.environ)
    final = parent / package.cache_name
    if not (final / "vmlinuz").is_file():
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="fetching-", dir=parent, ignore_cleanup_errors=True) as scratch:
                _fetch(package, Path(scratch), final, progress)
        except OSError as error:
            raise BalloonError(f"cannot fetch a kernel to {parent}: {error.strerror or error}") from error
    return GuestKernel(final / "vmlinuz", final / "modules", busybox)


def needed_packages(depends: str) -> list[str]:
    """Return the packages of a kernel itself that a package's ``Depends`` names, each once.

    In Debian 12 and 13 a kernel is one package. Later ``linux-image-VERSION`` is empty, and depends on
    ``linux-binary-VERSION`` and ``linux-modules-VERSION``.
    """
    return list(dict.fromkeys(re.findall(r"\blinux-(?:image|binary|modules)-[0-9][^ ,]*", depends)))


def _depends(package: Path) -> list[str]:
    done = subprocess.run(["dpkg-deb", "-f", str(package), "Depends"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BalloonError(f"{package.name}: {done.stderr.strip()}")
    return needed_packages(done.stdout)


def _fetch(package: KernelPackage, scratch: Path, final: Path, progress: Callable[[str], None]) -> None:
    names = [package.value]
    for step in ("meta", "image", "parts"):
        if not names:
            break
        (scratch / step).mkdir()
        packages = download_packages(names, scratch / step, progress)
        for each in packages:
            progress(f"unpacking {each.name}")
            run_tool(["dpkg", "-x", str(each), str(scratch / "unpacked")], scratch)
        names = [name for each in packages for name in _depends(each)]
    whole = scratch / "whole"
    collect_kernel(scratch / "unpacked", whole)
    os.sync()  # a cache that survives a power failure under its final name must be whole
    try:
        whole.rename(final)
    except OSError:
        if not (final / "vmlinuz").is_file():  # otherwise another process has just made it
            raise


def collect_kernel(unpacked: Path, whole: Path) -> None:
    """Move a kernel and its virtio modules out of ``unpacked``, what its packages hold, to the new ``whole``.

    Raises:
        BalloonError: there is no kernel, or none of its modules.
    """
    # In Debian 12 and 13: /boot/vmlinuz-VERSION. Later it is beside its modules.
    images = [*unpacked.glob("boot/vmlinuz-*"), *unpacked.glob("**/lib/modules/*/vmlinuz")]
    modules = [path for path in unpacked.glob("**/lib/modules/**/virtio*.ko*") if path.is_file()]
    if len(images) != 1 or not modules:
        raise BalloonError(f"the kernel's packages hold {len(images)} kernels and {len(modules)} virtio modules")
    (whole / "modules").mkdir(parents=True)
    images[0].rename(whole / "vmlinuz")
    for path in modules:
        path.rename(whole / "modules" / path.name)


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
