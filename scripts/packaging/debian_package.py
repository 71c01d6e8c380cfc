"""The Debian package: a folder as it is installed, and dpkg-deb, which makes the archive of it.

construct comes from Debian (python3-construct). The host's pyroute2 is used by tools alone, which are not installed.
"""

import gzip
import os
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from scripts.packaging.completion import bash_completion
from scripts.packaging.maintainer_scripts import maintainer_scripts, runtime_update
from scripts.packaging.manual_page import manual_page
from scripts.packaging.programs import PROGRAMS

PACKAGE: Final = "vhost-user-balloon"
MAINTAINER: Final = "The vhost-user-balloon developers <maintainers@vhost-user-balloon.invalid>"
LIBRARY: Final = f"usr/lib/{PACKAGE}"
_CONTROL: Final = """\
Package: {package}
Version: {version}
Architecture: all
Maintainer: {maintainer}
Installed-Size: {size}
Depends: python3 (>= 3.11), python3-construct (>= 2.10.68), udev, systemd | systemd-sysusers
Recommends: libseccomp2 (>= 2.5)
Suggests: python3-prometheus-client
Section: admin
Priority: optional
Description: balloon device for virtual machines, with free page reporting
 A virtio-balloon device as a process of its own: a vhost-user back-end that
 takes free page reports from many virtual machines and gives the pages back
 to the host. With balloonctl, which shows where the memory is and why it
 does not come back, and balloon-policy, which decides who gets how much.
"""

_WRAPPER: Final = """\
#!/bin/sh
PYTHONPATH=/{library} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 exec /usr/bin/python3 -m {module} "$@"
"""

_COPYRIGHT: Final = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: vhost-user-balloon

Files: *
Copyright: {owner}
License: Expat
{text}
"""


def build_package(checkout: Path, output: Path, version: str, scratch: Path) -> Path:
    """Build the package of ``checkout`` in ``output`` by way of the empty folder ``scratch``. Return its file.

    Raises:
        BalloonError: dpkg-deb is missing or fails.
    """
    if shutil.which("dpkg-deb") is None:
        raise BalloonError("dpkg-deb is missing: install the package dpkg")
    install_tree(checkout, scratch, version)
    for path in sorted(scratch.rglob("*")):
        executable = path.is_dir() or (path.parent.name in ("bin", "DEBIAN", "runtime.d") and path.name != "control")
        path.chmod(0o755 if executable else 0o644)
    output.mkdir(parents=True, exist_ok=True)
    archive = output / f"{PACKAGE}_{version}_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(scratch), str(archive)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
    )
    if done.returncode:
        raise BalloonError(f"dpkg-deb: {done.stderr.strip()}")
    return archive


def install_tree(checkout: Path, root: Path, version: str) -> None:
    """Write everything that the package installs below ``root``, and its control files."""
    root.chmod(0o755)
    for side in ("host", "protocol"):
        for source in python_sources(checkout / side):
            _write(root / LIBRARY / source.relative_to(checkout), source.read_bytes())
    for program in PROGRAMS:
        wrapper = _WRAPPER.format(library=LIBRARY, module=program.module)
        _write(root / "usr/bin" / program.name, wrapper.encode())
    _write(root / LIBRARY / f"vhost_user_balloon-{version}.dist-info/METADATA", _metadata(version))
    write_manual_pages(root / "usr/share/man/man1", version, compressed=True)
    write_completion(root / "usr/share/bash-completion/completions")
    for kind in ("service", "socket"):
        for unit in (f"{PACKAGE}.{kind}", f"{PACKAGE}@.{kind}"):
            _write(root / "usr/lib/systemd/system" / unit, (checkout / "host/systemd" / unit).read_bytes())
    _write(root / f"usr/lib/sysusers.d/{PACKAGE}.conf", (checkout / "host/systemd/sysusers.conf").read_bytes())
    update = root / f"usr/share/python3/runtime.d/{PACKAGE}.rtupdate"
    _write(update, runtime_update(PACKAGE, LIBRARY).encode())
    discovery = "50-vhost-user-balloon.json"
    _write(root / "usr/share/qemu/vhost-user" / discovery, (checkout / "host/systemd" / discovery).read_bytes())
    _write_documents(checkout, root / "usr/share/doc" / PACKAGE, version)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) // 1024
    control = _CONTROL.format(package=PACKAGE, version=version, maintainer=MAINTAINER, size=size)
    _write(root / "DEBIAN/control", control.encode())
    for name, script in maintainer_scripts(PACKAGE, LIBRARY).items():
        _write(root / "DEBIAN" / name, script.encode())


def python_sources(folder: Path) -> Iterator[Path]:
    """Yield the files of a Python package that it needs to run."""
    yield from sorted(folder.rglob("*.py"))


def write_manual_pages(folder: Path, version: str, *, compressed: bool = False) -> None:
    """Write the page of each program into ``folder``."""
    for program in PROGRAMS:
        page = manual_page(program.name, program.make_parser(), version).encode()
        name = f"{program.name}.1"
        _write(folder / (f"{name}.gz" if compressed else name), _compressed(page) if compressed else page)


def write_completion(folder: Path) -> None:
    """Write the completion of each program into ``folder``."""
    for program in PROGRAMS:
        _write(folder / program.name, bash_completion(program.name, program.make_parser()).encode())


def _write_documents(checkout: Path, folder: Path, version: str) -> None:
    changes = (checkout / "scripts/README.md").read_text().partition("## Changes\n")[2]
    _write(folder / "changelog.gz", _compressed(debian_changelog(changes, version).encode()))
    licence = (checkout / "LICENSE").read_text().split("\n", 2)[2].strip()
    owner, _, text = licence.partition("\n\n")
    lines = (f" {line}" if line else " ." for line in text.split("\n"))
    copyright_text = _COPYRIGHT.format(owner=owner.removeprefix("Copyright (c) "), text="\n".join(lines))
    _write(folder / "copyright", copyright_text.encode())
    _write(folder / "README.md.gz", _compressed((checkout / "host/README.md").read_bytes()))
    for name in ("dashboard.json", "rules.yml"):
        _write(folder / "examples" / name, (checkout / "host/monitoring" / name).read_bytes())


def debian_changelog(changes: str, version: str) -> str:
    """Return the points of ``changes`` in the format of deb-changelog(5)."""
    points = [line.removeprefix("* ") for line in changes.split("\n") if line.startswith("* ")]
    lines = (textwrap.fill(point, 78, initial_indent="  * ", subsequent_indent="    ") for point in points)
    head, date = f"{PACKAGE} ({version}) unstable; urgency=medium", "Thu, 01 Jan 2026 00:00:00 +0000"
    return "\n".join([head, "", *lines, "", f" -- {MAINTAINER}  {date}", ""])


def _metadata(version: str) -> bytes:
    return f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n".encode()


def _compressed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
