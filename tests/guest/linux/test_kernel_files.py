"""Where kernel, module and busybox come from, with stand-ins for apt-get, dpkg and the kernel."""

import os
import platform
import sys
import threading
from pathlib import Path

import pytest

from guest.linux import debian_packages, kernel_files
from guest.linux.debian_packages import cache_directory, is_static
from guest.linux.kernel_files import find_module, inspect_kernel, locate, module_release
from protocol.errors import BalloonError

pytestmark = pytest.mark.processes

CONFIGURATION = "\n".join(
    f"CONFIG_{name}" for name in ("VIRTIO_UML=y", "PAGE_REPORTING=y", "HOSTFS=y", "DEVTMPFS=y", "TMPFS=y")
)
# The shortest ELF header that counts: 64 bits, no program headers.
STATIC_ELF = b"\x7fELF\x02\x01" + bytes(58)


def kernel_script(release: str = "6.1.0", driver: str = "CONFIG_VIRTIO_BALLOON=m") -> str:
    return f"#!/bin/sh\n[ \"$1\" = --version ] && echo {release} && exit\ncat <<'X'\n{CONFIGURATION}\n{driver}\nX\n"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def module(path: Path, release: str = "6.1.0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF...\0depends=\0vermagic=" + release.encode() + b" mod_unload \0")
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with apt-get and dpkg but no kernel; return its directory of programs."""
    programs = tmp_path / "bin"
    for name in ("apt-get", "dpkg"):
        program(programs / name, "#!/bin/sh\nexit 9\n")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return programs


def working_packages(programs: Path, *, fails_without_lists: bool = False) -> None:
    """Make apt-get and dpkg do their part, the first one only after an update if ``fails_without_lists``."""
    program(
        programs / "apt-get",
        f"""#!{sys.executable}
import sys
words = sys.argv
own_lists = any(word.startswith("Dir::State=") for word in words)
if {fails_without_lists} and not own_lists:
    sys.exit("E: Unable to locate package user-mode-linux")
if "download" in words:
    for package in words[words.index("download") + 1 :]:
        open(package + "_1_amd64.deb", "w").write(package)
""",
    )
    program(
        programs / "dpkg",
        f"""#!{sys.executable}
import pathlib, sys
package, target = pathlib.Path(sys.argv[2]).read_text(), pathlib.Path(sys.argv[3])
def put(name, data):
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755)
if package == "busybox-static":
    put("bin/busybox", {STATIC_ELF!r})
else:
    put("usr/bin/linux.uml", {kernel_script()!r}.encode())
    put("usr/lib/uml/modules/6.1.0/kernel/virtio_balloon.ko", b"\\0vermagic=6.1.0 \\0")
""",
    )


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernel_files, "SYSTEM_MODULES", tmp_path / "none")


def silent(_line: str) -> None:
    """Take progress and say nothing."""


@pytest.mark.parametrize("fails_without_lists", [False, True])
def test_packages_are_fetched_once_into_the_cache(
    machine: Path, monkeypatch: pytest.MonkeyPatch, fails_without_lists: bool
) -> None:
    working_packages(machine, fails_without_lists=fails_without_lists)
    monkeypatch.setenv("PATH", f"{machine}:/usr/bin:/bin")  # the kernel's stand-in is a shell script
    monkeypatch.setattr(kernel_files, "_installed_busybox", lambda: None)
    monkeypatch.setattr(kernel_files, "_installed_kernel", lambda: None)
    files = locate(kernel=None, modules=None, progress=silent)
    cache = cache_directory(os.environ)
    assert files.release == "6.1.0"
    assert files.busybox == cache / "linux-x86_64/busybox"
    assert [entry.name for entry in cache.iterdir()] == ["linux-x86_64"]
    program(machine / "apt-get", "#!/bin/sh\nexit 9\n")
    assert locate(kernel=None, modules=None, progress=silent) == files


def test_two_launchers_at_once_both_succeed(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working_packages(machine)
    monkeypatch.setenv("PATH", f"{machine}:/usr/bin:/bin")
    meeting = threading.Barrier(2, timeout=20)
    monkeypatch.setattr(os, "sync", meeting.wait)  # both are about to rename
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(debian_packages.package_cache(silent))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 2
    assert found[0] == found[1]
    assert (found[0] / "busybox").is_file()
    assert [entry.name for entry in cache_directory(os.environ).iterdir()] == ["linux-x86_64"]


def test_failed_fetch_leaves_nothing_and_says_why(machine: Path) -> None:
    program(machine / "apt-get", "#!/bin/sh\necho 'E: Could not connect to the archive' >&2\nexit 100\n")
    with pytest.raises(BalloonError, match=r"Could not connect to the archive; install the packages"):
        locate(kernel=None, modules=None, progress=silent)
    assert list(cache_directory(os.environ).iterdir()) == []


@pytest.mark.parametrize("missing", ["apt-get", "dpkg"])
def test_machine_without_package_tools_is_told_what_to_install(machine: Path, missing: str) -> None:
    (machine / missing).unlink()
    with pytest.raises(BalloonError, match=f"without {missing}: install the packages user-mode-linux"):
        locate(kernel=None, modules=None, progress=silent)


def test_architecture_other_than_x86_64_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(BalloonError, match="no user-mode-linux for aarch64"):
        locate(kernel=None, modules=None, progress=silent)


def test_options_that_name_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match="no such program"):
        locate(kernel=tmp_path / "linux", modules=None, progress=silent)
    with pytest.raises(BalloonError, match="no such directory"):
        locate(kernel=None, modules=tmp_path / "modules", progress=silent)


def test_kernel_is_asked_what_it_can_do(tmp_path: Path) -> None:
    assert inspect_kernel(program(tmp_path / "a", kernel_script("6.12.3-uml"))) == ("6.12.3-uml", False)
    assert inspect_kernel(program(tmp_path / "b", kernel_script(driver="CONFIG_VIRTIO_BALLOON=y"))) == ("6.1.0", True)
    with pytest.raises(BalloonError, match="without CONFIG_VIRTIO_BALLOON"):
        inspect_kernel(program(tmp_path / "c", kernel_script(driver="")))
    with pytest.raises(BalloonError, match="without CONFIG_VIRTIO_UML, CONFIG_PAGE_REPORTING"):
        inspect_kernel(program(tmp_path / "d", '#!/bin/sh\n[ "$1" = --version ] && echo 6.1\nexit 0\n'))
    with pytest.raises(BalloonError, match="not a User Mode Linux kernel"):
        inspect_kernel(program(tmp_path / "e", "#!/bin/sh\necho hello\n"))
    with pytest.raises(BalloonError, match="does not run here: libc too old"):
        inspect_kernel(program(tmp_path / "f", "#!/bin/sh\necho libc too old >&2\nexit 1\n"))


def test_module_of_another_kernel_is_refused(tmp_path: Path) -> None:
    module(tmp_path / "6.2.0/kernel/virtio_balloon.ko", "6.2.0")
    with pytest.raises(BalloonError, match=r"is for Linux 6\.2\.0, the kernel is 6\.1\.0: give --modules"):
        find_module([tmp_path], "6.1.0")
    right = module(tmp_path / "6.1.0/kernel/virtio_balloon.ko")
    assert find_module([tmp_path], "6.1.0") == right
    assert find_module([right.parent], "6.1.0") == right


def test_directory_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match=r"no virtio_balloon\.ko for Linux 6\.1\.0"):
        find_module([tmp_path], "6.1.0")


def test_module_release_is_read_from_vermagic() -> None:
    assert module_release(b"..\0vermagic=6.1.176 mod_unload \0") == "6.1.176"
    assert module_release(b"no such thing") is None


def test_static_program_has_no_interpreter(tmp_path: Path) -> None:
    static = tmp_path / "static"
    static.write_bytes(STATIC_ELF)
    dynamic = bytearray(STATIC_ELF + b"\x03\0\0\0" + bytes(52))
    dynamic[32], dynamic[54], dynamic[56] = 64, 56, 1
    (tmp_path / "dynamic").write_bytes(dynamic)
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert is_static(static)
    assert not is_static(tmp_path / "dynamic")
    assert not is_static(tmp_path / "script")
    assert not is_static(tmp_path / "missing")


def test_cache_follows_xdg_only_if_absolute(tmp_path: Path) -> None:
    assert cache_directory({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "vhost-user-balloon"
    assert cache_directory({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/vhost-user-balloon"
