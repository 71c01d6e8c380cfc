"""As much of HTTP as a scrape takes: the head of one request, and one answer.

Source: RFC 9112.
"""

from typing import Final

HEAD_MAX: Final = 8 << 10
"""Most bytes of a request's head. Prometheus sends about 300."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_END: Final = b"\r\n\r\n"
_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Unavailable"}


def is_whole(head: bytes) -> bool:
    """Return whether the head of a request has ended."""
    return _END in head


def refusal(head: bytes) -> int | None:
    """Return the status with which a request that begins with ``head`` is refused, None if it asks for metrics.

    A head that is longer than :data:`HEAD_MAX`, or that ends before its end, is refused too.
    """
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if not is_whole(head) or len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return 400
    if words[0] not in (b"GET", b"HEAD"):
        return 405
    return None if words[1].split(b"?")[0] in (b"/metrics", b"/") else 404


def answer(head: bytes, status: int, body: bytes) -> bytes:
    """Return an answer to the request that begins with ``head``. The connection ends after it."""
    kind = CONTENT_TYPE if status == 200 else "text/plain; charset=utf-8"
    lines = (
        f"HTTP/1.1 {status} {_REASONS[status]}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join(lines).encode() + _END + (b"" if head.startswith(b"HEAD ") else body)
