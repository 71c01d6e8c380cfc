"""The trials with QEMU as far as they need none: archive, modules, command line, table, what is said without one."""

import json
import lzma
import stat
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from protocol.units import MIB
from scripts.emulator.__main__ import main
from scripts.emulator.archive import build_archive, directory, program
from scripts.emulator.command import MachinePlan, Poison, command_line, init_script, unsuitable
from scripts.emulator.kernel import collect_kernel, needed_packages, read_modules
from scripts.emulator.machine import Agent, check_qemu
from scripts.emulator.modules import depends, insertion_order
from scripts.emulator.poison_trials import kept_bytes
from scripts.emulator.results import Result, as_dict, table_lines
from tests.harness.scripted_server import answering

DEVICES = 'name "vhost-user-test-device-pci", bus PCI, desc "Generic vhost-user"\n'


def parse_archive(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive as the kernel does: mode and content by name, to the trailer."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name = data[at + 110 : at + 110 + fields[11]]
        assert name.endswith(b"\0")
        at += -(-(110 + fields[11]) // 4) * 4
        if name == b"TRAILER!!!\0":
            assert not data[at:].strip(b"\0")
            return found
        found[name[:-1].decode()] = (fields[1], data[at : at + fields[6]])
        at += -(-fields[6] // 4) * 4


def test_archive_holds_what_was_put_in() -> None:
    entries = [directory("bin"), program("bin/sh", b"#!"), program("init", b"12345"), program("empty", b"")]
    found = parse_archive(build_archive(entries))
    assert list(found) == ["bin", "bin/sh", "init", "empty"]
    assert stat.S_ISDIR(found["bin"][0])
    assert found["bin/sh"] == (stat.S_IFREG | 0o755, b"#!")
    assert found["init"][1] == b"12345"


def module(needs: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0vermagic=6.1\0"


def test_modules_are_inserted_after_what_they_need() -> None:
    modules = {
        "virtio_balloon": module("virtio,virtio_ring"),
        "virtio_pci": module("virtio_pci_modern_dev,virtio,virtio_ring"),
        "virtio_pci_modern_dev": module(""),
        "virtio_ring": module("virtio"),
        "virtio": module("built_in"),
        "virtio_net": module("virtio"),
    }
    order = insertion_order(modules)
    assert sorted(order) == sorted(modules.keys() - {"virtio_net"})
    for name in order:
        assert all(need not in order or order.index(need) < order.index(name) for need in depends(modules[name]))


def test_modules_that_cannot_be_inserted_are_an_error() -> None:
    with pytest.raises(BalloonError, match="no module virtio_balloon"):
        insertion_order({"virtio_pci": module("")})
    with pytest.raises(BalloonError, match="virtio_balloon virtio virtio_balloon"):
        insertion_order({"virtio_balloon": module("virtio"), "virtio": module("virtio_balloon")})
    assert depends(b"no module at all") == ()


def test_modules_are_read_plain_and_compressed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/virtio.ko").write_bytes(b"plain")
    (tmp_path / "virtio-rng.ko.xz").write_bytes(lzma.compress(b"pressed"))
    assert read_modules(tmp_path) == {"virtio": b"plain", "virtio_rng": b"pressed"}
    (tmp_path / "virtio_pci.ko.zst").write_bytes(b"?")
    with pytest.raises(BalloonError, match="only plain modules"):
        read_modules(tmp_path)


@pytest.mark.parametrize(
    ("version", "devices", "why"),
    [
        ("QEMU emulator version 10.2.0 (Debian)", DEVICES, None),
        ("QEMU emulator version 11.1.3", DEVICES, None),
        ("QEMU emulator version 10.1.9", DEVICES, "10.1 is too old"),
        ("QEMU emulator version 9.2.0", "", "9.2 is too old"),
        ("QEMU emulator version 11.1.3", 'name "vhost-user-test-device"', "built without"),
        ("GNU bash, version 5.2", "", "not a QEMU"),
    ],
)
def test_qemu_that_cannot_attach_is_told_from_one_that_can(version: str, devices: str, why: str | None) -> None:
    problem = unsuitable(version, devices)
    assert problem is None if why is None else why in str(problem)


def plan_of(*, packed: bool = False, poison: Poison | None = None) -> MachinePlan:
    return MachinePlan(
        qemu=Path("/q"),
        accelerator="tcg",
        memory=512 * MIB,
        packed=packed,
        kernel=Path("/k"),
        initrd=Path("/i"),
        socket_path=Path("/s"),
        directory=Path("/d"),
        poison=poison,
    )


def test_command_line_shares_the_memory_and_names_the_ring_format() -> None:
    for packed, word in ((True, "packed=on"), (False, "packed=off")):
        words = command_line(plan_of(packed=packed))
        assert words[0] == "/q"
        assert "memory-backend-memfd,id=mem,size=512M,share=on" in words
        assert any(each.endswith(f"num_vqs=5,vq_size=128,config_size=16,{word}") for each in words)
    assert "for module in virtio virtio_ring;" in init_script(["virtio", "virtio_ring"])


@pytest.mark.parametrize(
    ("poison", "append"),
    [
        (None, "console=ttyS0 panic=-1"),
        (Poison.PATTERN, "console=ttyS0 panic=-1 page_poison=1"),
        (Poison.ZERO, "console=ttyS0 panic=-1 init_on_free=1"),
    ],
)
def test_kernel_is_told_what_to_fill_free_pages_with(poison: Poison | None, append: str) -> None:
    words = command_line(plan_of(poison=poison))
    assert words[words.index("-append") + 1] == append


def chain_event(name: str, discarded: int, refused: int) -> dict[str, object]:
    return {"event": name, "discarded_bytes": discarded, "refused_bytes": refused}


def test_pages_that_hold_a_pattern_are_counted_and_a_discarded_one_is_told() -> None:
    poison = {"event": "refused", "reason": "poison", "bytes": 3 * MIB}
    kept = [chain_event("report", 0, 2 * MIB), poison, chain_event("inflate", 0, 4096), chain_event("report", 0, MIB)]
    assert kept_bytes(kept, "report") == 3 * MIB
    assert kept_bytes(kept, "hint") == 0
    with pytest.raises(BalloonError, match="4096 bytes discarded over inflate"):
        kept_bytes([*kept, chain_event("inflate", 4096, 0)], "report")
    with pytest.raises(BalloonError, match="8192 bytes refused: unaligned"):
        kept_bytes([*kept, {"event": "refused", "reason": "unaligned", "bytes": 8192}], "report")


@pytest.mark.parametrize(
    ("depends", "packages"),
    [
        ("linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)", ["linux-image-6.1.0-50-cloud-amd64"]),
        ("kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool", []),
        (
            "dracut | linux-initramfs-tool, linux-base-7.2.13+deb14-amd64 (= 7.2.13-1), "
            "linux-binary-7.2.13+deb14-amd64 (= 7.2.13-1), linux-modules-7.2.13+deb14-amd64 (= 7.2.13-1)",
            ["linux-binary-7.2.13+deb14-amd64", "linux-modules-7.2.13+deb14-amd64"],
        ),
    ],
)
def test_packages_of_a_kernel_are_found_whether_it_is_one_or_two(depends: str, packages: list[str]) -> None:
    assert needed_packages(depends) == packages


@pytest.mark.parametrize(
    ("image", "modules"),
    [
        ("boot/vmlinuz-6.1.0-50-cloud-amd64", "lib/modules/6.1.0-50-cloud-amd64"),
        ("usr/lib/modules/7.2.13+deb14-cloud-amd64/vmlinuz", "usr/lib/modules/7.2.13+deb14-cloud-amd64"),
    ],
)
def test_kernel_is_reduced_to_what_is_needed(tmp_path: Path, image: str, modules: str) -> None:
    unpacked, whole = tmp_path / "unpacked", tmp_path / "whole"
    for name in (image, f"{modules}/kernel/drivers/virtio/virtio_balloon.ko", f"{modules}/kernel/drivers/net/dummy.ko"):
        (unpacked / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).write_bytes(name.encode())
    collect_kernel(unpacked, whole)
    assert (whole / "vmlinuz").read_bytes() == image.encode()
    assert [path.name for path in (whole / "modules").iterdir()] == ["virtio_balloon.ko"]
    with pytest.raises(BalloonError, match="0 kernels and 0 virtio modules"):
        collect_kernel(unpacked / "usr/share", tmp_path / "none")


def test_table_has_one_line_a_result() -> None:
    results = [
        Result(ring="split", trial="boot", passed=True, note="Linux 6.1", seconds=1.94),
        Result(ring="packed", trial="stop / cont", passed=False, note="gone", seconds=20.0),
    ]
    assert table_lines(results) == [
        "ring    trial                seconds  seen",
        "split   boot         ok      1.9      Linux 6.1",
        "packed  stop / cont  FAILED  20.0     gone",
    ]
    data = json.loads(json.dumps(as_dict("QEMU 11", results)))
    assert data["qemu"] == "QEMU 11"
    assert [one["passed"] for one in data["results"]] == [True, False]


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_missing_or_old_qemu_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    old = write_program(tmp_path / "qemu-system-x86_64", "echo 'QEMU emulator version 7.2.15'")
    assert main([]) == 1
    assert capsys.readouterr().err == (
        f"balloon-qemu: {old}: QEMU 7.2 is too old: QEMU 10.2 or newer with the device vhost-user-test-device-pci is "
        "needed\n"
    )
    assert main(["--kernel", "/vmlinuz"]) == 2
    assert "go together" in capsys.readouterr().err


def test_qemu_that_does_says_its_version(tmp_path: Path) -> None:
    fake = write_program(
        tmp_path / "qemu", f"[ \"$1\" = --version ] && echo 'QEMU emulator version 10.2.1' || echo '{DEVICES.strip()}'"
    )
    assert check_qemu(fake) == "QEMU emulator version 10.2.1"


def test_answer_to_a_command_that_took_too_long_is_not_taken_for_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.emulator.machine._CHECK_SECONDS", 0.01)
    late = b"late\r\ndone 0\r\nnew\r\ndone 0\r\n"
    with answering(tmp_path / "agent", b"ready 7.2 none\r\n", b"", late):
        agent = Agent(tmp_path / "agent", lambda: None)
        assert agent.wait_ready() == ("7.2", None)
        with pytest.raises(BalloonError, match="no answer from the guest within 0 s"):
            agent.run("slow", seconds=0.0)
        assert agent.run("quick", seconds=10.0) == "new\r\n"
        agent.close()
