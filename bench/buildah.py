"""A second peer for cold builds: buildah, without a daemon, on a storage root of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from peer import PeerError


class Buildah:
    """Build by `buildah bud` with overlay storage. Nothing is run in these builds, so that no cgroup is asked for."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._command = ("buildah", "--root", str(place / "root"), "--runroot", str(place / "run"), "--storage-driver",
                         "overlay")  # fmt: skip

    def call(self, *arguments: str, check: bool = True) -> str:
        """Run a command and return what it prints. Raises PeerError when it fails and check is set."""
        try:
            done = subprocess.run(
                (*self._command, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        except FileNotFoundError as error:
            raise PeerError(f"buildah: {error}") from error
        if check and done.returncode:
            raise PeerError(f"buildah {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
        return done.stdout.strip()

    def import_base(self, tar: Path, reference: str) -> None:
        """Begin with an empty storage and bring the base image in."""
        if self._place.exists():
            self.call("rmi", "--all", "--force", check=False)  # its layers' mounts go with them
            shutil.rmtree(self._place)
        self._place.mkdir(parents=True)
        container = self.call("from", "scratch")
        self.call("add", "--quiet", container, str(tar), "/")
        self.call("commit", "--quiet", container, reference)
        self.call("rm", container)

    def version(self) -> str:
        """Return its version."""
        return self.call("--version")

    def forget(self, reference: str) -> None:
        """Remove an image; layers are not cached, as is the default."""
        self.call("rmi", "--force", reference, check=False)

    def build(self, context: Path, dockerfile: Path, reference: str) -> float:
        """Build from nothing but the base image, and return the whole process's seconds."""
        started = time.perf_counter()
        self.call(
            "bud", "--isolation", "chroot", "--no-cache", "--pull-never", "--quiet", "-f", str(dockerfile), "-t",
            reference, str(context),
        )  # fmt: skip
        return time.perf_counter() - started

    def close(self) -> None:
        """Remove everything."""
        self.call("rmi", "--all", "--force", check=False)
        shutil.rmtree(self._place, ignore_errors=True)
        os.sync()
