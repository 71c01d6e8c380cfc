"""A daemon under a service manager: what it tells, and the sockets that it is handed over."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from protocol.process.listening_socket import ListeningSocket
from tests.harness.processes import DEADLINE, ROOT


def test_daemon_tells_its_manager_and_serves_the_socket_that_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "balloon.sock"
    made = ListeningSocket(path, "--socket-path")
    listener = os.dup(made.socket.fileno())
    made.leave_file()
    made.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        # LISTEN_PID has to be the daemon's own number: this process becomes the daemon.
        script = f"import os, sys; os.dup2({listener}, 3); os.environ['LISTEN_PID'] = str(os.getpid()); " + (
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        words = [sys.executable, "-m", "host", "--socket-path", str(path)]
        daemon = subprocess.Popen(
            [sys.executable, "-c", script, *words],
            cwd=ROOT,
            env={**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(tmp_path / "notify")},
            pass_fds=[listener],
        )
        os.close(listener)
        ready = manager.recv(4096).decode().splitlines()
        assert ready == ["READY=1", f"MAINPID={daemon.pid}", f"STATUS=listening on {path}"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
        daemon.send_signal(signal.SIGHUP)
        assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(4096) == b"READY=1"
        daemon.send_signal(signal.SIGUSR2)  # its sessions cannot go on in another process: it stops
        assert manager.recv(4096) == b"STOPPING=1"
        assert daemon.wait(DEADLINE) == 0
    assert path.is_socket()


def test_a_restart_during_the_start_waits_for_the_daemon(tmp_path: Path) -> None:
    script = """if True:
        import os, signal, sys
        import host.command as program

        def check(_arguments):
            os.kill(os.getpid(), signal.SIGUSR2)

        program._check_combinations = check
        sys.exit(program.run(sys.argv[1:]))
        """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        daemon = subprocess.Popen(
            [sys.executable, "-c", script, "--socket-path", str(tmp_path / "balloon.sock")],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        while manager.recv(4096) != b"STOPPING=1":
            pass
        assert daemon.wait(DEADLINE) == 0
