"""``--metrics`` of a real daemon: scraped by HTTP, over both kinds of socket, and by clients that are no Prometheus."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.processes import DEADLINE, ROOT, DaemonProcess, until
from tests.harness.virtual_machine import DATA_AT, VirtualMachine

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

PAGE = 4096
RULES = Path(__file__).resolve().parents[3] / "host" / "monitoring" / "rules.yml"
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def connected(address: Path | tuple[str, int]) -> Iterator[socket.socket]:
    """Connect to the metrics."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(DEADLINE)
        client.connect(os.fspath(address) if isinstance(address, Path) else address)
        yield client


def answer_to(address: Path | tuple[str, int], request: bytes) -> tuple[str, str]:
    """Send a request; return the first line of the answer, and its body."""
    with connected(address) as client:
        client.sendall(request)
        data = b""
        while part := client.recv(1 << 16):
            data += part
    head, _, body = data.decode().partition("\r\n\r\n")
    return head.partition("\r\n")[0], body


def test_scrape(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with DaemonProcess(tmp_path, "--metrics", f"unix:{path}", "--name-from", "socket") as daemon:
        assert path.stat().st_mode & 0o777 == 0o600
        with VirtualMachine(daemon.socket_path) as machine:
            machine.ram.touch(DATA_AT, 4 * PAGE)
            machine.report((DATA_AT, 4 * PAGE))
            name = daemon.socket_path.stem

            def scrape() -> dict[tuple[str, str | None], float]:
                status, body = answer_to(path, GET)
                assert status == "HTTP/1.1 200 OK"
                return {
                    (sample.name, sample.labels.get("domain")): sample.value
                    for family in text_string_to_metric_families(body)
                    for sample in family.samples
                }

            # A chain is acknowledged before it is counted.
            until(lambda: scrape()["vhost_user_balloon_reports_total", name] == 1, "the report is counted")
            values = scrape()
            assert values["vhost_user_balloon_guests", None] == 1
            assert values["vhost_user_balloon_discarded_bytes_total", name] == 4 * PAGE
            assert values["vhost_user_balloon_healthy", name] == 1
            assert values["vhost_user_balloon_discard_seconds_count", None] == 1
            with connected(path) as silent, connected(path) as rude:
                rude.sendall(b"\0" * 20000)
                assert answer_to(path, b"HEAD /metrics HTTP/1.0\r\n\r\n") == ("HTTP/1.1 200 OK", "")
                assert answer_to(path, b"GET /x HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 404 Not Found"
                assert answer_to(path, b"\x16\x03\x01\r\n\r\n")[0] == "HTTP/1.1 400 Bad Request"
                silent.send(b"GET")
            machine.check_alive()
    assert not path.exists()


def test_port_in_use_is_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "host", "--socket-path", str(tmp_path / "s"), "--metrics", address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == f"vhost-user-balloon: --metrics {address}: Address already in use\n"
        assert not (tmp_path / "s").exists()
    with DaemonProcess(tmp_path, "--metrics", address):
        host, _, port = address.partition(":")
        assert answer_to((host, int(port)), GET)[0] == "HTTP/1.1 200 OK"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_rules_and_scrape_pass_promtool(tmp_path: Path) -> None:
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    path = tmp_path / "metrics"
    with DaemonProcess(tmp_path, "--metrics", f"unix:{path}") as daemon, VirtualMachine(daemon.socket_path):
        _, body = answer_to(path, GET)
    lint = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, text=True, check=False)
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")
