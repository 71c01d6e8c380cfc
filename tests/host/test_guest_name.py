"""What guests are called."""

import os
from pathlib import Path

import pytest

from host.guest_name import guest_name, name_of_cgroup


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator\n", "qemu-1-web"),
        ("0::/system.slice/vm@web.service\n", "vm@web"),
        ("4:memory:/machine/web.libvirt-qemu\n1:name=systemd:/other\n0::/\n", "web"),
        ("5:cpu,memory:/lab/guest3\n", "guest3"),
        ("0::/\n", ""),
        ("0::/a\x0cb\x1c\u2028c\n", "a\x0cb\x1c\u2028c"),
        ("0::/machine-caf\\xc3\\xa9.scope\n", "caf\u00e9"),
        ("0::/machine-\\xff.scope\n", "\ufffd"),
        ("", ""),
    ],
)
def test_names_by_cgroup(text: str, name: str) -> None:
    assert name_of_cgroup(text) == name


def test_names() -> None:
    assert guest_name("socket", 0, "web") == "web"
    assert guest_name("socket", 0, "") == ""
    assert guest_name("socket", 0, "w\udcffb") == "w?b"
    assert guest_name("socket", 0, "\x1b[2J\r\n\u202e\x9b1") == "?[2J????1"
    assert guest_name("pid", os.getpid(), "") == Path("/proc/self/comm").read_text().strip()
    assert guest_name("cgroup", os.getpid(), "") == name_of_cgroup(Path("/proc/self/cgroup").read_text())
    assert guest_name("pid", 0, "") == guest_name("cgroup", 0, "") == ""
