"""From an archive to a container, and back: pylayers beside docker, umoci, podman and the OCI runtime by hand.

Works, of one large image (Debian's minbase and the source's tree as a second layer):
load      an uncompressed docker-archive into an empty store, then the first container's `true` to its end
unpack    the same against `umoci unpack` of the image's OCI layout
run       start to exit of `true` in a container, as a whole process
library   the same as a call, against the runtime by hand on a bundle that is ready
commit    a one-file change in a container of the image, to an image

All peers that are installed run in every round, in turns; the order changes each round. Limits: sha256 of the
archive, and its bytes written once with fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from limit import timed_hash, timed_write
from peer import Docker, PeerError
from report import describe_machine, write_result
from source import PrepareError, prepare_base, prepare_source
from subject import SubjectError, environment, find_command

from pylayers.engine import Engine
from pylayers.engine.container import ContainerOptions

BASE = "pylayers-bench-base"
APP = "pylayers-bench-app:1"
# (work, peer) -> how many times faster pylayers has to be; below 1 it may be slower
GOALS = {
    ("load", "docker"): 20.0, ("unpack", "umoci"): 8.0, ("run", "docker"): 4.0, ("run", "podman"): 1.0,
    ("commit", "umoci"): 20.0, ("commit", "docker"): 1.0,
}  # fmt: skip
LIBRARY_GOAL_S = 0.010
RUNS_A_ROUND = 5  # of the short works
READ_BYTES = 1 << 23
QUIET_S = 0.2  # the disk is taken to be at rest after as long without a request
SETTLED_WITHIN_S = 10.0

# crun refuses cgroups in hybrid mode: podman runs where cgroup2 is mounted alone. Costs it some milliseconds.
UNIFIED = ("unshare", "--mount", "sh", "-c", 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"', "sh")

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
            started = time.perf_counter()
            engine.containers.run(APP, ["true"], ContainerOptions(remove=True))
            return time.perf_counter() - started

    def commit(self) -> float:
        """Change one file in a container and commit it."""
        name = f"changed-{time.time_ns()}"
        timed((*self.command, "run", "--name", name, APP, "sh", "-c", "echo changed > /opt/changed"))
        seconds = timed((*self.command, "commit", name, f"committed:{name}"))
        timed((*self.command, "rm", name))
        return seconds


class Runtime:
    """runc by hand on a bundle that is ready."""

    def __init__(self, place: Path, subject: Subject) -> None:
        self.place = place
        self._subject = subject

    def run(self) -> float:
        """Run `true` in the image's file system."""
        with Engine.open(self._subject.root) as engine:
            created = engine.containers.create(APP, ["true"])
            try:
                rootfs = engine.driver().mounts(created.id)
                return run_bundle(self.place, rootfs, created.id)
            finally:
                engine.containers.remove(created.id, force=True)


def run_bundle(place: Path, rootfs: Any, name: str) -> float:
    """Mount a root file system below a bundle of runc's own making and time `runc run` alone."""
    from pylayers.snapshot.mount import mount, unmount

    shutil.rmtree(place, ignore_errors=True)
    (place / "rootfs").mkdir(parents=True)
    subprocess.run(["runc", "spec"], cwd=place, check=True)
    config = json.loads((place / "config.json").read_text())
    config["process"]["args"], config["process"]["terminal"] = ["true"], False
    config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] != "network"]
    (place / "config.json").write_text(json.dumps(config))
    mount(rootfs, place / "rootfs")
    try:
        return timed(("runc", "run", "--bundle", str(place), name[:12]))
    finally:
        unmount(place / "rootfs")


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


def play(works: dict[str, dict[str, Sample]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Run every side of every work in each round, the order turned around in every second one."""
    samples: dict[str, dict[str, list[float]]] = {work: {side: [] for side in sides} for work, sides in works.items()}
    for number in range(rounds):
        for work, sides in works.items():
            print(f"round {number + 1} of {rounds}: {work}", file=sys.stderr, flush=True)
            times = RUNS_A_ROUND if work in ("run", "library") else 1
            for _ in range(times):
                for side in list(sides)[:: -1 if number % 2 else 1]:
                    samples[work][side].append(sides[side]())
    return samples


def summarise(samples: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return one row for every peer of every work."""
    rows = []
    for work, sides in samples.items():
        ours = statistics.median(sides["pylayers"])
        for peer, taken in sides.items():
            if peer == "pylayers":
                continue
            theirs = statistics.median(taken)
            goal = GOALS.get((work, peer))
            reached = ours - theirs <= LIBRARY_GOAL_S if work == "library" else goal and theirs / ours >= goal
            rows.append({
                "work": work, "peer": peer, "pylayers_s": ours, "peer_s": theirs, "ratio": theirs / ours,
                "goal": goal if work != "library" else f"+{LIBRARY_GOAL_S * 1000:.0f} ms", "reached": bool(reached),
                "pylayers_samples_s": sides["pylayers"], "peer_samples_s": taken,
            })  # fmt: skip
    return rows


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, run the rounds and return the result."""
    cache: Path = options.cache.absolute()
    archive = make_archive(cache, options.source)
    subject = Subject(cache / "container" / "pylayers", archive)
    machine = describe_machine(cache)
    with ExitStack() as stack:
        subject.load()
        works: dict[str, dict[str, Sample]] = {"load": {"pylayers": subject.load}}
        works["run"] = {"pylayers": subject.run}
        works["commit"] = {"pylayers": subject.commit}
        if options.docker:
            root = None if options.docker_root is None else options.docker_root.absolute()
            docker = stack.enter_context(Docker(cache / "docker", root, {}, archive.parent))
            peer = Peer(docker, archive)
            for work, sample in (("load", peer.load), ("run", peer.run), ("commit", peer.commit)):
                works[work]["docker"] = sample
        if shutil.which("podman") and "run" in (options.work or "run"):
            works["run"]["podman"] = Podman(cache / "container" / "podman", archive).run
        if shutil.which("runc"):
            works["library"] = {
                "pylayers": subject.library, "runc": Runtime(cache / "container" / "bundle", subject).run
            }  # fmt: skip
        if shutil.which("umoci"):
            umoci = Umoci(cache / "container" / "umoci", subject)
            umoci.prepare()
            works["unpack"] = {"pylayers": subject.load, "umoci": umoci.unpack}
            works["commit"]["umoci"] = umoci.commit
        if options.work:
            works = {work: works[work] for work in options.work.split(",")}
        samples = play(works, options.rounds)
        versions = docker.versions() if options.docker else None
    size_bytes = archive.stat().st_size
    return {
        "command": list(find_command()),
        "machine": {**machine, "load_average_at_end": os.getloadavg()},
        "docker": versions,
        "rounds": options.rounds,
        "archive_bytes": size_bytes,
        "limits": {
            "sha256_s": timed_hash(archive),
            "write_s": timed_write(cache / "limit.scratch", size_bytes),
        },
        "works": summarise(samples),
    }


def show(result: dict[str, Any]) -> None:
    """Print a result for people."""
    print("| work | peer | pylayers s | peer s | ratio | goal | reached |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for row in result["works"]:
        goal = row["goal"] if row["goal"] is not None else ""
        reached = "" if row["goal"] is None else "yes" if row["reached"] else "no"
        print(
            f"| {row['work']} | {row['peer']} | {row['pylayers_s']:.3f} | {row['peer_s']:.3f} | {row['ratio']:.1f} |"
            f" {goal} | {reached} |"
        )
    limits = result["limits"]
    print(f"\nlimits of the archive: sha256 {limits['sha256_s']:.3f} s, write + fsync {limits['write_s']:.3f} s")


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="Compare loading, running and committing by pylayers and its peers.")
    parser.add_argument("--source", default="ml", help="ml, nm, big or quick")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", default="", help="only these, comma-separated")
    parser.add_argument("--no-docker", dest="docker", action="store_false")
    parser.add_argument("--docker-root", type=Path, help="a Debian root that dockerd and docker are run from")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    try:
        result = compare(options)
    except (PrepareError, PeerError, SubjectError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = write_result(options.cache, result, "container")
    show(result)
    print(f"\nwritten to {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
