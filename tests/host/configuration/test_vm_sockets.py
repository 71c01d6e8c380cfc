"""The sockets that an operator asks for: by words, by a file, and what is wrong with them."""

from pathlib import Path

import pytest

from host.balloon.offered_features import OFFERED, feature_names
from host.balloon.personality import PERSONALITIES
from host.configuration.config_file import load_sockets
from host.configuration.device_options import DeviceOptions, DeviceSettings, parse_device_options
from host.configuration.requested_sockets import RequestedSockets
from host.configuration.vm_option import parse_vm_option, read_vm_options
from host.configuration.vm_socket import Mistakes, SocketDefaults, VmSocket
from host.configuration.vm_table import KEYS
from protocol.errors import BalloonError, UsageError
from protocol.process.listening_socket import SocketAccess

PLAIN = SocketDefaults(settings=DeviceSettings())


def by_words(*options: str, defaults: SocketDefaults = PLAIN) -> tuple[VmSocket, ...]:
    return read_vm_options([parse_vm_option(option) for option in options], defaults)


def in_file(path: Path, text: str, defaults: SocketDefaults = PLAIN) -> tuple[VmSocket, ...]:
    path.write_text(text, encoding="utf-8")
    return load_sockets(path, defaults)


def lines_of(path: Path, text: str) -> list[str]:
    """Return the mistakes in the text of a file, without its name."""
    with pytest.raises(Mistakes) as refused:
        in_file(path, text)
    lines = str(refused.value).split("\n")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_words_and_a_file_mean_the_same(tmp_path: Path) -> None:
    words = by_words(
        "socket-path=/run/a,,b.sock,name=web,features=packed=on,statistics=off,personality=qemu,balloon=64M,"
        "discard=none,in-band=on,statistics-interval=5,guest-memory=1G,socket-mode=600,queue-numbers=fixed"
    )
    file = in_file(
        tmp_path / "c.toml",
        """
        [[vm]]
        socket-path = "/run/a,b.sock"
        name = "web"
        features = { packed = true, statistics = "off" }
        personality = "qemu"
        balloon = "64M"
        discard = "none"
        in-band = true
        statistics-interval = 5
        guest-memory = "1G"
        socket-mode = "600"
        queue-numbers = "fixed"
        """,
    )
    assert words == file
    (socket,) = words
    assert (socket.path, socket.access) == (Path("/run/a,b.sock"), SocketAccess(0o600))
    assert "packed" in feature_names(socket.device.features)
    assert "statistics" not in feature_names(socket.device.features)
    assert (socket.device.name, socket.device.balloon_pages, socket.device.discard) == ("web", 16384, False)
    assert parse_device_options(socket.device.build()) == socket.device


def test_options_of_the_command_line_hold_where_nothing_else_is_said() -> None:
    given = DeviceSettings(personality="qemu", switches={"packed": True, "in-order": True}, guest_memory=1 << 30)
    first, second = by_words(
        "socket-path=/a",
        "socket-path=/b,personality=text,in-order=off",
        defaults=SocketDefaults(settings=given, group=7),
    )
    assert first.device.features == PERSONALITIES["qemu"].features | second.device.features & ~OFFERED | 1 << 35
    assert feature_names(second.device.features & ~OFFERED) == ["packed"]
    assert (first.device.queue_numbers, second.device.queue_numbers) == ("offered", "fixed")
    assert first.device.guest_memory == second.device.guest_memory == 1 << 30
    assert first.access == SocketAccess(0o660, 7)


def test_every_mistake_of_a_file_is_a_line_with_its_place(tmp_path: Path) -> None:
    lines = lines_of(
        tmp_path / "c.toml",
        """
        [[vm]]
        socket-path = "/a"
        personality = "qemo"
        sokcet-mode = "660"
        features = { pakced = true, statistics = 3 }
        [[vm]]
        name = "a name"
        socket-path = ""
        balloon = "5K"
        socket-mode = "999"
        socket-group = "no such group"
        statistics-interval = -1
        [vms]
        """,
    )
    expected = [
        "vm[0].personality: unknown 'qemo', did you mean qemu? (allowed are vhost-user-balloon, qemu, ",
        "vm[0].features.pakced: unknown key, did you mean packed? (known are ",
        "vm[0].features.statistics: 3 is neither true nor false",
        "vm[0].sokcet-mode: unknown key, did you mean socket-mode? (known are ",
        "vm[1].socket-path: an empty path",
        "vm[1].name: 'a name' is not a name",
        "vm[1].balloon: not whole pages of 4096 bytes",
        "vm[1].statistics-interval: -1 is not from 0",
        "vm[1].socket-mode: not three octal digits, such as 660: '999'",
        "vm[1].socket-group: no group 'no such group'",
        "vms: unknown key, did you mean vm?",
    ]
    assert [line for line, start in zip(lines, expected, strict=True) if not line.startswith(start)] == []


def test_known_keys_are_those_that_are_read(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path / "c.toml", '[[vm]]\nsocket-path = "/a"\nx = 1\n')
    assert line == f"vm[0].x: unknown key (known are {', '.join(sorted(KEYS))})"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("vm = 3", "vm: not an array of tables (write [[vm]])"),
        ("[[vm]]\nname", "line 2: not TOML: Expected '=' after a key in a key/value pair"),
        ('[[vm]]\nsocket-path = "a\\u0000b"', "vm[0].socket-path: a path with a zero byte"),
        (
            '[[vm]]\nsocket-path = "/a"\nfeatures = "page-reporting=off,draft-init-reported=on"',
            "vm[0].features: draft-init-reported needs page-reporting",
        ),
    ],
)
def test_file_that_means_nothing_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    assert lines_of(tmp_path / "c.toml", text)[0].startswith(complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('"a\\nb\\u001b" = 1', '"a\\\\nb\\\\u001b": unknown key'),
        ('[[vm]]\nsocket-path = "a"\n[vm.features]\n"\\u2028" = true', 'vm\\[0\\].features."\\\\u2028": unknown key'),
        ("[[vm]]\nsocket-path = 0x" + "f" * 9000, "socket-path: a number with thousands of digits is not a string"),
        ('[[vm]]\nsocket-path = "a"\nballoon = 0x' + "f" * 9000, "balloon: above 1152921504606846976"),
        ('[[vm]]\nsocket-path = "a"\nballoon = "' + "9" * 9000 + '"', "balloon: not a size: '99999"),
        (
            '[[vm]]\nsocket-path = "a"\npersonality = "' + "p" * 9000 + '"',
            "personality: unknown 'pppp.* \\(allowed are",
        ),
        ('[[vm]]\nsocket-path = "a"\nname = "' + "n" * 9000 + '"', "name: 'nnnn.*' is not a name"),
        ('[[vm]]\nsocket-path = "a"\nsocket-group = "' + "g" * 9000 + '"', "socket-group: no group 'ggg"),
        ('[[vm]]\nsocket-path = "a"\n' + "k" * 9000 + " = 1", "kkkkk.*: unknown key"),
        ("#" * (1 << 20) + "\n", "larger than 1 MiB"),
    ],
)
def test_mistake_with_any_content_is_one_line_of_moderate_length(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BalloonError, match=complaint) as caught:
        in_file(tmp_path / "c.toml", text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


def test_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert [
        each.device.name for each in in_file(tmp_path / "c.toml", '\ufeff[[vm]]\nsocket-path = "a"\nname = "b"')
    ] == ["b"]


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "not an ordinary file"), (tmp_path / "no", "No such file or directory")):
        with pytest.raises(BalloonError, match=f"^--config {path}: {reason}$"):
            load_sockets(path, PLAIN)
    (tmp_path / "latin").write_bytes(b"# \xe9\n")
    with pytest.raises(UsageError, match="not a text file in UTF-8"):
        load_sockets(tmp_path / "latin", PLAIN)
    assert in_file(tmp_path / "none", "# none yet\n") == ()


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("web", "write KEY=VALUE,..., not 'web'"),
        ("name=a,name=b", "name comes twice"),
        ("packed=on,features=packed=off", "packed comes twice"),
        ("features=packed", "write features=NAME=on|off"),
        ("features=pakced=on", "no feature 'pakced'"),
    ],
)
def test_words_that_are_none_are_refused(option: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_vm_option(option)
    assert str(refused.value).startswith(complaint)


def test_mistakes_of_words_say_which_option() -> None:
    with pytest.raises(Mistakes) as refused:
        by_words("socket-path=/a", "name=x,in-ordr=on,packed=1")
    assert [line.partition(" (")[0] for line in str(refused.value).split("\n")] == [
        "--vm[1].socket-path: missing",
        "--vm[1].features.in-ordr: unknown key, did you mean in-order?",
        "--vm[1].features.packed: unknown '1'",
    ]


def test_sockets_share_neither_path_nor_name(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[[vm]]\nsocket-path = "/run/a"\n[[vm]]\nsocket-path = "/b"\nname = "x"\n')
    requested = RequestedSockets(
        socket_path=Path("/run/a"),
        vms=[parse_vm_option("socket-path=/c,name=x")],
        config=tmp_path / "c.toml",
        control=Path("/c"),
        defaults=PLAIN,
    )
    with pytest.raises(Mistakes) as refused:
        requested.read()
    file = tmp_path / "c.toml"
    assert str(refused.value).split("\n") == [
        "--vm[0]: /c is the control socket's path",
        f"{file}: vm[0]: /run/a comes twice, the first is --socket-path",
        f"{file}: vm[1]: the name x comes twice, the first is --vm[0]",
    ]


def test_device_without_options_is_the_default() -> None:
    assert DeviceSettings().options("", None) == DeviceOptions()
