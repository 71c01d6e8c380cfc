"""The metrics' socket with real connections: clients that send nothing, too much, or what is no request."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from host.metrics.address import MetricsAddress
from host.metrics.http_scrape import HEAD_MAX
from host.metrics.metrics_server import CLIENTS_MAX, MetricsServer

DEADLINE = 20.0
GET = b"GET /metrics HTTP/1.0\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def no_guests(name: str) -> Any:
    """Answer as a daemon without guests."""
    status = {"vms": 0, "uptime": 1.0, "sessions": 0, "latency-bounds": [1.0]}
    return {"query-status": status, "query-version": {"package": "1"}}.get(name, [])


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[list[Streams]]:
    """Serve metrics. Yield a list of connections, which are closed in the end."""
    clients: list[Streams] = []
    with ExitStack() as sockets:
        server = MetricsServer(MetricsAddress(path=path), no_guests, sockets)
        server.start()
        try:
            yield clients
        finally:
            await server.close()
            for _, writer in clients:
                writer.close()


async def exchange(path: Path, request: bytes, clients: list[Streams]) -> bytes:
    """Send a request and return the answer, up to the end of the connection."""
    reader, writer = await asyncio.open_unix_connection(path)
    clients.append((reader, writer))
    writer.write(request)
    answer = b""
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionResetError):
            while piece := await reader.read(1 << 16):
                answer += piece
    return answer


@pytest.mark.asyncio
async def test_clients_that_send_no_request_keep_no_scrape_away(tmp_path: Path) -> None:
    path = tmp_path / "m"
    async with serving(path) as clients:
        for sent in (b"", b"GET /metrics HTTP/1.1\r\nHost: "):
            for _ in range(CLIENTS_MAX):
                clients.append(await asyncio.open_unix_connection(path))
                clients[-1][1].write(sent)
            assert (await exchange(path, GET, clients)).startswith(b"HTTP/1.1 200 OK\r\n")
        async with asyncio.timeout(DEADLINE):
            assert await clients[0][0].read() == b""  # the oldest made room


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"\x16\x03\x01\x02\x00 \r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"a" * HEAD_MAX, 400),
        (b"PUT /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (GET + GET, 200),
    ],
)
async def test_requests(tmp_path: Path, request_head: bytes, status: int) -> None:
    async with serving(tmp_path / "m") as clients:
        answer = await exchange(tmp_path / "m", request_head, clients)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
