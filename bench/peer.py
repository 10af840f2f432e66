"""The peer: dockerd with its BuildKit, started for the comparison with a data root of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

START_LIMIT_S = 60
INSIDE = Path("/bench")  # where a docker root sees the cache's folders

# Run in a mount namespace of its own, so nothing it mounts is left behind: the docker root or an empty word, a number,
# as many pairs of (host directory, directory inside), and the daemon's flags.
ENTER = """
set -e
root=$1 pairs=$2; shift 2
if [ -z "$root" ]; then exec dockerd "$@"; fi
mount --bind "$root" "$root"
for name in proc sys dev; do mount --rbind /$name "$root/$name"; done
while [ "$pairs" -gt 0 ]; do
    mkdir -p "$root$2"; mount --bind "$1" "$root$2"
    shift 2; pairs=$((pairs - 1))
done
exec chroot "$root" dockerd "$@"
"""


class PeerError(RuntimeError):
    """The peer cannot be started, or one of its commands failed."""


class Docker:
    """Hold a running dockerd; use it as a context manager."""

    def __init__(self, state: Path, root: Path | None, sources: dict[str, Path], files: Path) -> None:
        self._state = state
        self._root = root
        self._shared = {state: INSIDE / "state", files: INSIDE / "files"}
        self._shared |= {directory: INSIDE / "source" / name for name, directory in sources.items()}
        self._environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.inside(state)),
            "DOCKER_HOST": f"unix://{self.inside(state)}/docker.sock",
            "DOCKER_BUILDKIT": "1",
        }
        self._daemon: subprocess.Popen[bytes] | None = None

    def inside(self, path: Path) -> Path:
        """Return a host path as the daemon's side sees it."""
        if self._root is None:
            return path
        for outside, place in self._shared.items():
            if path.is_relative_to(outside):
                return place / path.relative_to(outside)
        raise PeerError(f"{path} is not shared with the docker root")

    def __enter__(self) -> Docker:
        shutil.rmtree(self._state, ignore_errors=True)
        self._state.mkdir(parents=True)
        state = self.inside(self._state)
        flags = (
            "--data-root", f"{state}/data", "--exec-root", f"{state}/exec", "--pidfile", f"{state}/pid",
            "-H", f"unix://{state}/docker.sock", "--bridge=none", "--iptables=false",
        )  # fmt: skip
        pairs = [str(path) for pair in self._shared.items() for path in pair] if self._root else []
        with (self._state / "log").open("wb") as log:
            self._daemon = subprocess.Popen(
                ("setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER,
                 "sh", str(self._root or ""), str(len(pairs) // 2), *pairs, *flags),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_LIMIT_S
        while self.call("version", check=False).returncode:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise PeerError(f"dockerd did not start; see {self._state / 'log'}")
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the daemon; its mounts go with its namespace."""
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(30)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()

    def command(self, *arguments: str) -> tuple[str, ...]:
        """Return a docker command line as it is run from outside."""
        if self._root is None or self._daemon is None:
            return ("docker", *arguments)
        return ("nsenter", "--target", str(self._daemon.pid), "--mount", "--root", "docker", *arguments)

    def call(self, *arguments: str, check: bool = True, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a docker command. Raises PeerError when it fails and check is set."""
        with (stdin or Path(os.devnull)).open("rb") as given:
            done = subprocess.run(
                self.command(*arguments), env=self._environment, stdin=given, capture_output=True, text=True
            )
        if check and done.returncode:
            raise PeerError(f"docker {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
        return done

    def versions(self) -> dict[str, str]:
        """Return the client's, the daemon's and buildx's version, and the storage driver."""
        told: dict[str, Any] = json.loads(self.call("version", "--format", "{{json .}}").stdout)
        buildx = self.call("buildx", "version", check=False)
        return {
            "client": str(told["Client"]["Version"]),
            "daemon": str(told["Server"]["Version"]),
            "buildx": buildx.stdout.strip() if buildx.returncode == 0 else "none",
            "storage": self.call("info", "--format", "{{.Driver}}").stdout.strip(),
        }

    def import_base(self, tar: Path, reference: str) -> None:
        """Bring the base image in."""
        self.call("import", "-", reference, stdin=tar)

    def forget(self, reference: str) -> None:
        """Remove an image, those that had its name before, and the whole build cache with the transferred context."""
        self.call("image", "rm", "--force", reference, check=False)
        self.call("image", "prune", "--force")
        self.call("builder", "prune", "--all", "--force")

    def build(self, context: Path, dockerfile: Path, reference: str, *, no_cache: bool) -> float:
        """Build as users do, and return the whole process's seconds."""
        options = ("--no-cache",) if no_cache else ()
        started = time.perf_counter()
        self.call(
            "build", *options, "-f", str(self.inside(dockerfile)), "-t", reference, str(self.inside(context))
        )
        return time.perf_counter() - started

    def image_id(self, reference: str) -> str:
        """Return an image's id. Raises PeerError when there is no such image."""
        return self.call("image", "inspect", "--format", "{{.Id}}", reference).stdout.strip()

    def layer_bytes(self, reference: str) -> int:
        """Return the size of an image's topmost layer, as docker counts it."""
        sizes = self.call("history", "--human=false", "--format", "{{.Size}}", reference).stdout.split()
        return int(sizes[0])
