"""What cases download from: an HTTP server and a git daemon on the loopback interface."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType


class Handler(SimpleHTTPRequestHandler):
    """Serve files; `/redirect/N/PATH` answers with N redirects first, `/status/CODE` with that code."""

    def do_GET(self) -> None:
        """Answer a GET."""
        _, first, *rest = self.path.split("/")
        if first == "redirect":
            count = int(rest[0])
            left = f"/redirect/{count - 1}/" if count > 1 else "/"
            self.send_response(302)
            self.send_header("Location", left + "/".join(rest[1:]))
            self.end_headers()
        elif first == "status":
            self.send_error(int(rest[0]))
        elif first == "disposition":
            content = b"named by a header\n"
            self.send_response(200)
            self.send_header("Content-Disposition", f'attachment; filename="{rest[0]}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        else:
            super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class Servers:
    """Serve a folder by HTTP and its repositories by git's protocol; use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=directory))
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._directory = directory
        self.http = f"http://127.0.0.1:{self._http.server_port}"
        self._git_port = free_port()
        self.git = f"git://127.0.0.1:{self._git_port}"
        self._git: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Servers:
        self._thread.start()
        self._git = subprocess.Popen(
            ["git", "daemon", "--listen=127.0.0.1", f"--port={self._git_port}", "--export-all", "--reuseaddr",
             f"--base-path={self._directory}", str(self._directory)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={
                **os.environ,
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            },
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._git_port)) == 0:
                    return self
            time.sleep(0.05)
        raise RuntimeError("git daemon does not listen")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        if self._git is not None:
            os.killpg(self._git.pid, 15)  # git starts the daemon as a child of its own
            self._git.wait()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
