"""What is installed agrees with the programs: pages, completion, discovery file, units, the tree of the package."""

import gzip
import json
import os
import re
import signal
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

import host.__main__
from host.service_manager.kept_descriptors import KEPT_MAX
from scripts.packaging.completion import bash_completion
from scripts.packaging.debian_package import debian_changelog, install_tree
from scripts.packaging.maintainer_scripts import maintainer_scripts, runtime_update
from scripts.packaging.manual_page import escaped, manual_page
from scripts.packaging.programs import PROGRAMS, Program, options, sub_commands
from tests.harness.processes import ROOT

DATA = ROOT / "host" / "systemd"
UNITS = ("vhost-user-balloon.service", "vhost-user-balloon@.service")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: str(program.name))
def test_manual_page_has_each_option_and_no_other(program: Program) -> None:
    parser = program.make_parser()
    page = manual_page(program.name, parser, "1.0").replace("\\-", "-")
    known = {option for each in (parser, *(its for _, its in sub_commands(parser))) for option in options(each)}
    headed = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "\n".join(re.findall(r"^\\fB(.*)\\fP$", page, re.MULTILINE))))
    assert headed == known
    assert page.startswith(f".TH {program.name.upper()} 1 ")
    assert {name for name, _ in sub_commands(parser)} == set(re.findall(r"^\.SS (.*)$", page, re.MULTILINE))


def test_manual_page_is_the_same_on_each_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        pages.append(manual_page(PROGRAMS[0].name, PROGRAMS[0].make_parser(), "1.0"))
    assert pages[0] == pages[1]
    assert "\n[\\-\\-ask\\ PATH\\ [COMMAND\\ ...]]\n" in pages[0]


def test_text_is_no_request() -> None:
    assert escaped(".x\n'y\na\\b --c") == "\\&.x\n\\&'y\na\\eb \\-\\-c"


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("vhost-user-balloon", ["--log-l"], ["--log-level"]),
        ("vhost-user-balloon", ["--log-level", "w"], ["warning"]),
        ("balloonctl", ["doc"], ["doctor"]),
        ("balloonctl", ["reclaim", "--fl"], ["--floor"]),
        ("balloonctl", ["reclaim", "--method", "h"], ["hint"]),
    ],
)
def test_bash_completes(name: str, words: list[str], expected: list[str]) -> None:
    program = next(program for program in PROGRAMS if program.name == name)
    script = bash_completion(name, program.make_parser())
    command = ["bash", "-c", f'{script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _{name.replace("-", "_")}\n'
               'printf "%s\\n" "${COMPREPLY[@]}"', "bash", name, *words]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_discovery_file_agrees_with_capabilities(capsys: pytest.CaptureFixture[str]) -> None:
    host.__main__.print_capabilities()
    discovery = json.loads((DATA / "50-vhost-user-balloon.json").read_text())
    assert discovery["type"] == json.loads(capsys.readouterr().out)["type"]
    assert os.path.basename(discovery["binary"]) in [program.name for program in PROGRAMS]


def unit_of(name: str) -> dict[str, list[str]]:
    parser = ConfigParser(strict=False, interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DATA / name)
    kind = Path(name).suffix[1:].capitalize()
    assert parser.sections() == ["Unit", kind, "Install"]
    return {key: value.split() for section in ("Unit", kind) for key, value in parser[section].items()}


@pytest.mark.parametrize("name", UNITS)
def test_unit_starts_the_daemon_with_options_that_it_has(name: str) -> None:
    service = unit_of(name)
    words = [word.replace("%i", "a") for word in service["ExecStart"] if word != "$OPTIONS"]
    words[words.index("kvm")] = "0"  # not every machine has the group
    arguments = PROGRAMS[0].make_parser().parse_args(words[1:])
    directory = service["RuntimeDirectory"][0].replace("%i", "a")
    assert {str(arguments.socket_path.parent), str(arguments.control.parent)} == {f"/run/{directory}"}
    assert service["Group"] == ["kvm"]


@pytest.mark.parametrize("name", UNITS)
def test_unit_keeps_what_the_daemon_stores_while_it_is_restarted(name: str) -> None:
    service = unit_of(name)
    assert service["Type"] == ["notify"]
    assert service["RestartKillSignal"] == [signal.SIGUSR2.name]
    assert int(service["FileDescriptorStoreMax"][0]) >= KEPT_MAX
    assert service["StartLimitIntervalSec"] == ["0"]  # a unit that has failed keeps nothing
    assert service["RuntimeDirectoryPreserve"] == ["yes"]  # the files of the sockets that are kept


@pytest.mark.parametrize(
    ("code", "status", "waits"), [("exited", "0", False), ("killed", "KILL", False), ("exited", "2", True)]
)
@pytest.mark.parametrize("name", UNITS)
def test_unit_waits_after_a_daemon_that_refuses_to_start(name: str, code: str, status: str, waits: bool) -> None:
    shell, option, *words = unit_of(name)["ExecStopPost"]
    text = " ".join(words).strip('"').replace("sleep", "echo sleep")
    text = text.replace("$EXIT_CODE", code).replace("$EXIT_STATUS", status)  # systemd puts the values in
    done = subprocess.run([shell, option, text], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sleep") == waits


@pytest.mark.parametrize("name", UNITS)
def test_unit_has_a_user_whose_directory_others_can_enter(name: str) -> None:
    service = unit_of(name)
    assert "DynamicUser" not in service  # with RuntimeDirectoryPreserve=: below /run/private, which is root's alone
    kind, user, *_ = (DATA / "sysusers.conf").read_text().split()
    assert (kind, [user]) == ("u", service["User"])


@pytest.mark.parametrize("name", UNITS)
def test_socket_unit_listens_where_its_service_does_and_outlives_it(name: str) -> None:
    service, sock = unit_of(name), unit_of(name.replace(".service", ".socket"))
    command = service["ExecStart"]
    assert sock["ListenStream"] == [command[command.index("--socket-path") + 1]]
    assert sock["SocketGroup"] == [command[command.index("--socket-group") + 1]]
    assert sock["SocketGroup"] == service["Group"]  # the service's directory and all that is in it becomes this group's
    assert service["RuntimeDirectoryPreserve"] == ["yes"]


def test_units_confine_the_daemon_alike() -> None:
    one, other = (unit_of(name) for name in UNITS)
    differ = {key for key in one | other if one.get(key) != other.get(key)}
    assert differ == {"Description", "EnvironmentFile", "ExecStart", "RuntimeDirectory"}


def test_tree_of_the_package(tmp_path: Path) -> None:
    install_tree(ROOT, tmp_path, "1.0")
    library = tmp_path / "usr/lib/vhost-user-balloon"
    assert (library / "host/__main__.py").read_bytes() == (ROOT / "host/__main__.py").read_bytes()
    assert not list(library.rglob("*.md"))
    assert (
        "vhost-user-balloon (1.0) unstable"
        in gzip.decompress((tmp_path / "usr/share/doc/vhost-user-balloon/changelog.gz").read_bytes()).decode()
    )
    commands = sorted(path.name for path in (tmp_path / "usr/bin").iterdir())
    assert commands == sorted(program.name for program in PROGRAMS)
    for program in PROGRAMS:
        assert (library / program.module.replace(".", "/") / "__main__.py").is_file()
    control = (tmp_path / "DEBIAN/control").read_text()
    assert re.findall(r"^ .*", control.partition("Description:")[0], re.MULTILINE) == []  # one line a field
    outside = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert outside == {"usr", "DEBIAN"}


@pytest.mark.parametrize(
    ("script", "argument", "calls"),
    [
        ("postinst", "configure", ["systemd-sysusers p.conf", "py3compile -p p /usr/lib/p"]),
        ("postinst", "abort-upgrade", []),
        ("prerm", "upgrade", ["py3clean -p p /usr/lib/p"]),
        (
            "prerm",
            "remove",
            [
                "systemctl disable p.socket p@.socket",
                "systemctl disable p.service p@.service",
                "py3clean -p p /usr/lib/p",
            ],
        ),
        ("postrm", "remove", ["rm -rf /run/p /run/p-*"]),
        ("postrm", "purge", ["getent passwd p", "userdel p"]),
        ("rtupdate", "rtupdate", ["py3clean -p p /usr/lib/p", "py3compile -p p /usr/lib/p"]),
        ("rtupdate", "pre-rtupdate", []),
    ],
)
def test_maintainer_script_does_its_part_alone(tmp_path: Path, script: str, argument: str, calls: list[str]) -> None:
    for command in ("systemd-sysusers", "py3compile", "py3clean", "systemctl", "getent", "userdel", "rm"):
        (tmp_path / command).write_text(f'#!/bin/sh\necho {command} "$@" >>{tmp_path}/calls\n')
        (tmp_path / command).chmod(0o755)
    text = (maintainer_scripts("p", "usr/lib/p") | {"rtupdate": runtime_update("p", "usr/lib/p")})[script]
    text = text.replace("/run/systemd/system", f"{tmp_path}/absent")
    subprocess.run(["sh", "-c", text, script, argument], env={"PATH": f"{tmp_path}:/bin"}, check=True)
    done = tmp_path / "calls"
    assert (done.read_text().splitlines() if done.exists() else []) == calls


def test_changelog_is_the_list_of_changes() -> None:
    text = debian_changelog("\n### Unreleased\n\n* one\n* " + "word " * 30 + "\n", "2.0")
    lines = text.split("\n")
    assert lines[:3] == ["vhost-user-balloon (2.0) unstable; urgency=medium", "", "  * one"]
    assert max(map(len, lines[:-2])) <= 80
    assert lines[-2].startswith(" -- ")
