"""Where metrics are served, as the command line says it, and as much of HTTP as that takes."""

from pathlib import Path

import pytest

from host.metrics.address import MetricsAddress, parse_metrics_address
from host.metrics.http_scrape import answer, is_whole, refusal
from protocol.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9377", MetricsAddress("127.0.0.1", 9377)),
        ("localhost:0", MetricsAddress("localhost", 0)),
        ("[::1]:9377", MetricsAddress("::1", 9377)),
        ("unix:/run/m", MetricsAddress(path=Path("/run/m"))),
    ],
)
def test_addresses(text: str, address: MetricsAddress) -> None:
    assert parse_metrics_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", ":9377", "9377", "unix:", "::1:9377", "[::1]", "a:", "a:65536", "a:\u0663"])
def test_mistakes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_metrics_address(text)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /metrics HTTP/1.1", None),
        (b"HEAD / HTTP/1.0", None),
        (b"GET /metrics?x=1 HTTP/1.1", None),
        (b"GET /other HTTP/1.1", 404),
        (b"POST /metrics HTTP/1.1", 405),
        (b"GET /metrics", 400),
        (b"\x16\x03\x01", 400),
        (b"", 400),
    ],
)
def test_requests(line: bytes, status: int | None) -> None:
    assert refusal(line + b"\r\nHost: x\r\n\r\n") == status


def test_answer() -> None:
    assert is_whole(b"GET / HTTP/1.1\r\n\r\n")
    assert not is_whole(b"GET / HTTP/1.1\r\n")
    got = answer(b"GET / HTTP/1.1\r\n", 200, b"x 1\n")
    assert got.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert got.endswith(b"Content-Length: 4\r\nConnection: close\r\n\r\nx 1\n")
    assert answer(b"HEAD / HTTP/1.1\r\n", 200, b"x 1\n").endswith(b"\r\n\r\n")
