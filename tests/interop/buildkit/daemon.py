"""A dockerd of the suite's own: on a private socket, in a mount namespace of its own, with no bridge and no network."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT_VARIABLE = "PYLAYERS_DOCKER_ROOT"
INSIDE = Path("/interop")  # where a docker root sees the suite's folder
OLDEST_MAJOR = 23  # the first whose builder is BuildKit with today's Dockerfile language
START_LIMIT_S = 60
CALL_LIMIT_S = 120

# The docker root or an empty word, the folder to share, and the daemon's command line.
ENTER = """
set -e
root=$1 shared=$2; shift 2
if [ -z "$root" ]; then exec dockerd "$@"; fi
mount --bind "$root" "$root"
for name in proc sys dev; do mount --rbind /$name "$root/$name"; done
mkdir -p "$root/interop"; mount --bind "$shared" "$root/interop"
exec chroot "$root" dockerd "$@"
"""


class DaemonMissing(RuntimeError):
    """No dockerd can be started here; the message says why."""


class Daemon:
    """Hold a running dockerd; `shared` is the folder that it and its client see, as `inside` names it."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        given = os.environ.get(ROOT_VARIABLE)
        self._root = Path(given) if given else None
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self.inside(shared),
            "DOCKER_HOST": f"unix://{self.inside(shared)}/docker.sock",
            "DOCKER_BUILDKIT": "1",
        }

    def inside(self, path: Path | str) -> str:
        """Return a path of this side as the daemon sees it."""
        return str(INSIDE / Path(path).relative_to(self.shared)) if self._root else str(path)

    def outside(self, path: str) -> Path:
        """Return a path of the daemon's side as this side sees it."""
        return self.shared / Path(path).relative_to(INSIDE) if self._root else Path(path)

    def start(self) -> None:
        """Start the daemon and wait until it answers. Raises DaemonMissing."""
        self._look()
        config = {"features": {"containerd-snapshotter": False}, "storage-driver": "overlay2"}
        (self.shared / "daemon.json").write_text(json.dumps(config))
        shared = self.inside(self.shared)
        flags = (
            "--config-file", f"{shared}/daemon.json", "--data-root", f"{shared}/data", "--exec-root", f"{shared}/exec",
            "--pidfile", f"{shared}/pid", "-H", f"unix://{shared}/docker.sock", "--bridge=none", "--iptables=false",
        )  # fmt: skip
        with (self.shared / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ("unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", str(self._root or ""),
                 str(self.shared), *flags),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT_S
        while self.call("version").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                told = (self.shared / "log").read_text(errors="replace").strip().splitlines()
                raise DaemonMissing(f"dockerd did not start: {told[-1] if told else 'it said nothing'}")
            time.sleep(0.2)

    def _look(self) -> None:
        if os.geteuid() != 0:
            raise DaemonMissing("starting dockerd needs root")
        command = ["chroot", str(self._root), "dockerd"] if self._root else ["dockerd"]
        if self._root is None and shutil.which("dockerd") is None:
            raise DaemonMissing(f"dockerd is not on PATH, and {ROOT_VARIABLE} names no root that has one")
        told = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"version (\d+)", told)
        if version is None or int(version[1]) < OLDEST_MAJOR:
            raise DaemonMissing(
                f"dockerd is too old ({told.strip() or 'no version'}); {OLDEST_MAJOR} or newer is needed"
            )

    def close(self) -> None:
        """Stop the daemon; its mounts go with its namespace."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def call(
        self, *arguments: str, stdin: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a docker command."""
        command: Sequence[str] = ("docker", *arguments)
        if self._root is not None and self._process is not None:
            command = ("nsenter", "--target", str(self._process.pid), "--mount", "--root", *command)
        with (stdin or Path(os.devnull)).open("rb") as given:
            return subprocess.run(
                command, env={**self._environment, **(environment or {})}, stdin=given, capture_output=True, text=True,
                errors="replace", timeout=CALL_LIMIT_S,
            )  # fmt: skip

    def expect(self, *arguments: str, stdin: Path | None = None) -> str:
        """Run a docker command that must work and return what it printed."""
        done = self.call(*arguments, stdin=stdin)
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(arguments)} failed: {done.stderr[-2000:]}")
        return done.stdout

    def versions(self) -> dict[str, str]:
        """Return docker's, BuildKit's and buildx's version."""
        buildkit = re.search(r"BuildKit version:\s*(\S+)", self.expect("buildx", "inspect"))
        return {
            "docker": self.expect("version", "--format", "{{.Server.Version}}").strip(),
            "buildkit": buildkit[1] if buildkit else "unknown",
            "buildx": self.expect("buildx", "version").strip(),
        }
