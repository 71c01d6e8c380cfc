"""A server on a unix socket that sends a script of answers, one for each line that its client sends."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE = 20.0


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Send ``answers`` to one client, the first at once and each further one after a line, and hang up after the last.

    The list holds the lines that the client has sent.
    """
    lines: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as reader:
                connection.settimeout(DEADLINE)
                for number, answer in enumerate(answers):
                    if number > 0:
                        lines.append(reader.readline())
                    if answer:  # the client may have gone
                        connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        yield lines
        server.join(DEADLINE)
        assert not server.is_alive()
