"""The sides of bench/container.py: pylayers, and each peer that runs or commits containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from limit import timed_hash, timed_write
from peer import Docker
from source import prepare_base, prepare_source
from subject import SubjectError, environment, find_command, layer_tar

from pylayers.container.apart import Apart
from pylayers.engine import Engine
from pylayers.engine.container import ContainerOptions

BASE = "pylayers-bench-base"
APP = "pylayers-bench-app:1"
FILL = "mkdir /opt/large; for i in $(seq 64); do head -c 16777216 /dev/urandom > /opt/large/$i; done"

# crun refuses cgroups in hybrid mode: podman runs where cgroup2 is mounted alone. Costs it some milliseconds.
UNIFIED = ("unshare", "--mount", "sh", "-c", 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"', "sh")

READ_BYTES = 1 << 23
QUIET_S = 0.2  # the disk is taken to be at rest after as long without a request
SETTLED_WITHIN_S = 10.0
REST_S = 0.3  # since another start, ours or theirs: just after it the kernel's cgroup lock is quick to get

Sample = Callable[[], float]


def settle(*inputs: Path) -> None:
    """Leave nothing of the turn before to the next: what isn't written yet, discards that still run, cold inputs.

    Inputs are read once, since what was in the page cache when a round began may have left it in another side's turn.
    """
    os.sync()
    for path in inputs:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb", buffering=0) as stream:
                    while stream.read(READ_BYTES):
                        pass
    device = os.stat(inputs[0]).st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    before, deadline = "", time.monotonic() + SETTLED_WITHIN_S
    while counters.exists() and time.monotonic() < deadline and (now := counters.read_text()) != before:
        before = now
        time.sleep(QUIET_S)


def timed(command: tuple[str, ...] | list[str]) -> float:
    """Run a command to its end and return its seconds. Raises SubjectError when it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SubjectError(f"{' '.join(command)} left with {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds


class Subject:
    """pylayers on a data root of its own."""

    def __init__(self, root: Path, archive: Path) -> None:
        self.root = root
        self.archive = archive
        self.command = (*find_command(), "--root", str(root))

    def load(self) -> float:
        """Load into an empty store and run the first container."""
        shutil.rmtree(self.root, ignore_errors=True)
        settle(self.archive)
        return timed((*self.command, "load", "-i", str(self.archive))) + self.run()

    def run(self) -> float:
        """Run `true` as a whole process."""
        return timed((*self.command, "run", "--rm", APP, "true"))

    def library(self) -> float:
        """Run `true` by a call."""
        with Engine.open(self.root) as engine:
            time.sleep(REST_S)
            started = time.perf_counter()
            engine.containers.run(APP, ["true"], ContainerOptions(remove=True))
            return time.perf_counter() - started

    def commit(self) -> float:
        """Change one file in a container and commit it."""
        return self._commit("echo changed > /opt/changed", "committed:one")

    def commit_large(self) -> float:
        """Commit a container that holds a gibibyte more than its image; earlier rounds' layers are deleted before."""
        with Engine.open(self.root) as engine:
            if any("committed:large" in name for image in engine.images.list() for name in image.references):
                engine.images.remove(["committed:large"])
            engine.collect()
        return self._commit(FILL, "committed:large")

    def _commit(self, command: str, reference: str) -> float:
        name = f"changed-{time.time_ns()}"
        timed((*self.command, "run", "--name", name, APP, "sh", "-c", command))
        os.sync()
        try:
            return timed((*self.command, "commit", name, reference))
        finally:
            timed((*self.command, "rm", name))

    def start_and_hash(self) -> float:
        """Start a program that does nothing, and take sha256 of the tar that the last commit wrote."""
        return timed((*find_command(), "version")) + timed_hash(layer_tar(self.root, "committed:one"))

    def hash_large(self) -> float:
        """Take sha256 of the tar that the last large commit wrote."""
        return timed_hash(layer_tar(self.root, "committed:large"))

    def write_large(self) -> float:
        """Write as many bytes with fsync."""
        return timed_write(self.root / "limit.scratch", layer_tar(self.root, "committed:large").stat().st_size)


class Runtime:
    """A runtime by hand on bundles that are ready."""

    def __init__(self, place: Path, subject: Subject) -> None:
        self.place = place
        self._subject = subject

    def own(self) -> float:
        """Run `true` with the runtime that ours chooses, where it chooses to, and a container's configuration."""
        with Engine.open(self._subject.root) as engine:
            runtime = engine.runtime()
        with Apart(runtime.hides, self.place, self.place) as apart:
            return self.same(runtime.command, apart)

    def same(self, command: tuple[str, ...] = ("runc",), apart: Apart | None = None) -> float:
        """Run `true` with the configuration of a container that ours ran with the same runtime: crun's lacks rules."""
        with Engine.open(self._subject.root, runtime=Path(command[0]).name) as engine:
            made, _ = engine.containers.run(APP, ["true"])
            config = json.loads((self._subject.root / "containers" / made.id / "bundle" / "config.json").read_text())
            config["root"]["path"] = "rootfs"
            try:
                return self._run(engine.driver().mounts(made.id), made.id, config, command, apart)
            finally:
                engine.containers.remove(made.id, force=True)

    def plain(self) -> float:
        """Run `true` with the configuration that runc itself proposes, in the host's network."""
        with Engine.open(self._subject.root) as engine:
            created = engine.containers.create(APP, ["true"])
            try:
                return self._run(engine.driver().mounts(created.id), created.id, None, ("runc",), None)
            finally:
                engine.containers.remove(created.id, force=True)

    def _run(
        self, rootfs: Any, name: str, config: dict[str, Any] | None, command: tuple[str, ...], apart: Apart | None
    ) -> float:
        """Mount a root file system below a bundle and time the runtime's `run` alone."""
        from pylayers.snapshot.mount import mount, unmount

        shutil.rmtree(self.place, ignore_errors=True)
        (self.place / "rootfs").mkdir(parents=True)
        if config is None:
            subprocess.run(["runc", "spec"], cwd=self.place, check=True)
            config = json.loads((self.place / "config.json").read_text())
            config["process"]["args"], config["process"]["terminal"] = ["true"], False
            config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] != "network"]
        (self.place / "config.json").write_text(json.dumps(config))
        mount(rootfs, self.place / "rootfs")
        try:
            time.sleep(REST_S)
            call = (*command, "run", "--bundle", str(self.place), name[:12])
            if apart is None:
                return timed(call)
            apart.show_rootfs()
            return apart.call(lambda: timed(call))
        finally:
            unmount(self.place / "rootfs")


class Peer:
    """docker, as a daemon that is up."""

    def __init__(self, docker: Docker, archive: Path) -> None:
        self._docker = docker
        self._file = archive
        self._archive = str(docker.inside(archive))

    def _timed(self, *arguments: str) -> float:
        started = time.perf_counter()
        self._docker.call(*arguments)
        return time.perf_counter() - started

    def load(self) -> float:
        """Load into a store without the image and run the first container."""
        self._docker.call("system", "prune", "--all", "--force")  # what was committed would keep the layers
        settle(self._file)
        return self._timed("load", "-i", self._archive) + self.run()

    def run(self) -> float:
        """Run `true` as a whole process."""
        return self._timed("run", "--rm", "--network", "host", APP, "true")

    def commit(self) -> float:
        """Change one file in a container and commit it."""
        self._docker.call("run", "--name", "changed", "--network", "host", APP, "sh", "-c", "echo x > /opt/changed")
        try:
            return self._timed("commit", "changed", "committed")
        finally:
            self._docker.call("rm", "changed")


class Umoci:
    """umoci on an OCI layout."""

    def __init__(self, place: Path, subject: Subject) -> None:
        self._place = place
        self._subject = subject

    def prepare(self) -> None:
        """Write the layout from the subject's store."""
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True)
        timed((*self._subject.command, "save", "--format", "oci-dir", "-o", str(self._place / "layout"), APP))

    def unpack(self) -> float:
        """Unpack the image."""
        shutil.rmtree(self._place / "bundle", ignore_errors=True)
        settle(self._place / "layout")
        return timed(("umoci", "unpack", "--image", f"{self._place}/layout:1", str(self._place / "bundle")))

    def commit(self) -> float:
        """Change one file of the unpacked image and repack it."""
        if not (self._place / "bundle").exists():
            self.unpack()
        (self._place / "bundle" / "rootfs" / "opt" / "changed").write_text(f"{time.time_ns()}\n")
        return timed(("umoci", "repack", "--image", f"{self._place}/layout:new", str(self._place / "bundle")))


class Podman:
    """podman with overlay storage of its own."""

    def __init__(self, place: Path, archive: Path) -> None:
        self._command = ("podman", "--root", str(place / "root"), "--runroot", str(place / "run"), "--cgroup-manager",
                         "cgroupfs", "--storage-driver", "overlay")  # fmt: skip
        shutil.rmtree(place, ignore_errors=True)
        timed((*self._command, "load", "-q", "-i", str(archive)))

    def run(self) -> float:
        """Run `true` as a whole process."""
        limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")  # its own are above what may be set
        options = ("--rm", "--network", "host", "--cgroups", "disabled", *limits)
        return timed((*UNIFIED, *self._command, "run", *options, APP, "true"))


def make_archive(cache: Path, source_name: str, *, small: bool = False) -> Path:
    """Build the image from the source's tree and save it; kept in the cache."""
    path = cache / "archive" / f"{source_name}.tar"
    if path.exists():
        return path
    source = prepare_source(cache, source_name, BASE)
    root = cache / "archive" / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    with Engine.open(root) as engine:
        engine.images.import_(prepare_base(cache, small=small), BASE)
        engine.build(source.directory, dockerfile=str(source.dockerfile), references=[APP])
        partial = path.with_name(f"partial-{path.name}")
        with partial.open("wb") as out:
            engine.images.save([APP], out.fileno())
    partial.rename(path)
    shutil.rmtree(root)
    return path
