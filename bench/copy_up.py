"""Copying files, trees and an image's folder into a volume: pylayers beside cp and docker, on several file systems.

Works, each on a file system of its own in a loop file, made anew for the work and deleted with it:
file      one file of 1 GiB, a call of the kernel beside `cp --reflink=auto`
tree      a tree of 36,000 files, the same beside `cp -a`
volume    `run --rm -v NAME:/path IMAGE true` with an empty volume, as whole processes, beside docker's

Both sides run in every round; who is first changes from round to round. What a round of tree and volume has made stays
until the end: ext4 doesn't use an inode again for minutes after its deletion, and searches long for another. Limits: as
many bytes written once from memory, without fsync as on both sides; for volume, the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from container_side import APP, Sample, Subject, make_archive, timed
from disk import call, enter_own_mounts, fresh_disk
from failure import FAILURES, describe_failure, exit_status
from limit import BLOCK_BYTES
from peer import Docker, PeerError
from report import describe_machine, write_result
from source import PrepareError, measure_tree, prepare_source, read_tree
from subject import SubjectError, find_command

from pylayers._native import copyup

FILE_BYTES = 1 << 30
# (work) -> how many times faster pylayers has to be
GOALS = {"file": 1 / 1.1, "tree": 1.0, "volume": 2.0}
PEERS = {"file": "cp --reflink=auto", "tree": "cp -a", "volume": "docker run -v"}


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree by the kernel."""
    target.mkdir()
    descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target)]
    try:
        copyup.copy_tree(*descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file by the kernel."""
    with source.open("rb") as reading, target.open("xb") as writing:
        copyup.copy_file(reading.fileno(), writing.fileno(), os.fstat(reading.fileno()).st_size)


def run_command(*command: str) -> Callable[[Path, Path], None]:
    """Return a copy by a command."""
    return lambda source, target: timed((*command, str(source), str(target))) and None


def sampled(copy: Callable[[Path, Path], None], source: Path, keep: bool) -> Sample:
    """Return the measuring of one copy beside its source, which is read first."""

    def sample() -> float:
        target = source.with_name(f"{source.name}-{time.monotonic_ns()}")
        os.sync()
        if source.is_dir():
            read_tree(source)
        started = time.perf_counter()
        copy(source, target)
        seconds = time.perf_counter() - started
        if not keep:
            target.unlink()
        return seconds

    return sample


def write_file(path: Path) -> None:
    """Write bytes that nothing can shrink."""
    block = os.urandom(BLOCK_BYTES)
    with path.open("wb") as file:
        for number in range(FILE_BYTES // BLOCK_BYTES):
            file.write(number.to_bytes(8) + block[8:])


def timed_plain_write(root: Path, size_bytes: int) -> float:
    """Time writing as many bytes from memory into one file, without fsync."""
    block = os.urandom(BLOCK_BYTES)
    os.sync()
    scratch = root / "limit"
    with scratch.open("wb", buffering=0) as file:
        started = time.perf_counter()
        for at in range(0, size_bytes, BLOCK_BYTES):
            file.write(block[: size_bytes - at])
        seconds = time.perf_counter() - started
    scratch.unlink()
    return seconds


def play(sides: dict[str, Sample], rounds: int, title: str) -> dict[str, list[float]]:
    """Run both sides in each round, by turns the first; one round before is not counted."""
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-1, rounds):
        print(f"{title}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for side in list(sides)[:: -1 if number % 2 else 1]:
            seconds = sides[side]()
            if number >= 0:
                samples[side].append(seconds)
    return samples


def compare_copies(work: str, kind: str, options: argparse.Namespace, source: Path) -> dict[str, Any]:
    """Compare copies of a file or a tree on one file system."""
    with fresh_disk(kind, options.cache / "copy-up") as root:
        here = root / "source"
        if work == "file":
            write_file(here)
            size_bytes = FILE_BYTES
        else:
            call("cp", "-a", str(source), str(here))
            size_bytes = measure_tree(here).size_bytes
        peer = run_command("cp", "--reflink=auto") if work == "file" else run_command("cp", "-a")
        ours = copy_file if work == "file" else copy_tree
        keep = work == "tree"
        sides = {"pylayers": sampled(ours, here, keep), "peer": sampled(peer, here, keep)}
        samples = play(sides, options.rounds, f"{work} on {kind}")
        check_copy(ours, here, root / "checked")
        return summarise(work, kind, samples, timed_plain_write(root, size_bytes))


def check_copy(copy: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    """See that a copy holds what its source does. Raises SubjectError."""
    copy(source, target)
    done = subprocess.run(("diff", "--recursive", "--no-dereference", "--brief", str(source), str(target)))
    if done.returncode:
        raise SubjectError(f"the copy of {source} differs from it")


def compare_volumes(options: argparse.Namespace, source: Path) -> dict[str, Any]:
    """Compare the first run of a container with an empty volume over a folder of its image, on ext4."""
    archive = make_archive(options.cache, options.source)
    target = f"/opt/{options.source}"
    with ExitStack() as stack:
        root = stack.enter_context(fresh_disk("ext4", options.cache / "copy-up"))
        subject = Subject(root / "pylayers", archive)
        subject.load()
        inside = None if options.docker_root is None else options.docker_root.absolute()
        docker = stack.enter_context(Docker(root / "docker", inside, {}, archive.parent))
        docker.call("load", "-i", str(docker.inside(archive)))

        def ours() -> float:
            os.sync()
            name = f"filled-{time.monotonic_ns()}"
            return timed((*subject.command, "run", "--rm", "-v", f"{name}:{target}", APP, "true"))

        def theirs() -> float:
            os.sync()
            name = f"filled-{time.monotonic_ns()}"
            started = time.perf_counter()
            docker.call("run", "--rm", "--network", "host", "-v", f"{name}:{target}", APP, "true")
            return time.perf_counter() - started

        samples = play({"pylayers": ours, "peer": theirs}, options.rounds, "volume on ext4")
        filled = next((subject.root / "volumes").glob("filled-*/_data"))
        if measure_tree(filled) != measure_tree(source):
            raise SubjectError("a volume doesn't hold what the image's folder does")
        limit_s = timed_plain_write(root, measure_tree(source).size_bytes)
        return {**summarise("volume", "ext4", samples, limit_s), "docker": docker.versions()}


def summarise(work: str, kind: str, samples: dict[str, list[float]], limit_s: float) -> dict[str, Any]:
    """Return one row."""
    ours, theirs = (statistics.median(samples[side]) for side in ("pylayers", "peer"))
    return {
        "work": work, "file_system": kind, "peer": PEERS[work], "pylayers_s": ours, "peer_s": theirs,
        "ratio": theirs / ours, "goal": GOALS[work], "reached": theirs / ours >= GOALS[work], "limit_s": limit_s,
        "pylayers_samples_s": samples["pylayers"], "peer_samples_s": samples["peer"],
    }  # fmt: skip


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, run the rounds and return the result."""
    source = prepare_tree(options.cache, options.source)
    machine = describe_machine(options.cache)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for work in options.work.split(","):
        for kind in options.file_system.split(",") if work != "volume" else ("ext4",):
            try:
                one = compare_volumes(options, source) if work == "volume" else compare_copies(
                    work, kind, options, source
                )
            except FAILURES as error:
                notes.append(describe_failure(f"copy-up, {work}, {kind}", error))
            else:
                rows.append(one)
    return {
        "command": list(find_command()),
        "machine": {**machine, "load_average_at_end": os.getloadavg()},
        "rounds": options.rounds,
        "tree": {"name": options.source, "entries": measure_tree(source).entries},
        "works": rows,
        "notes": notes,
    }


def prepare_tree(cache: Path, name: str) -> Path:
    """Return the tree, making it when it is missing."""
    return prepare_source(cache, name, "pylayers-bench-base").directory


def show(result: dict[str, Any]) -> None:
    """Print a result for people."""
    print("| work | file system | peer | pylayers s | peer s | ratio | goal | reached | limit s |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: |")
    for row in result["works"]:
        print(
            f"| {row['work']} | {row['file_system']} | {row['peer']} | {row['pylayers_s']:.4f} | {row['peer_s']:.4f} |"
            f" {row['ratio']:.2f} | ≥ {row['goal']:.2f} | {'yes' if row['reached'] else 'no'} | {row['limit_s']:.3f} |"
        )
    for note in result["notes"]:
        print(f"\n{note}")


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="Compare copies by pylayers with those by cp and docker.")
    parser.add_argument("--source", default="modules", help="the tree: modules, or another of bench/source.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", default="file,tree,volume", help="only these, comma-separated")
    parser.add_argument("--file-system", default="ext4,xfs,btrfs", help="only these, comma-separated")
    parser.add_argument("--docker-root", type=Path, help="a Debian root that dockerd and docker are run from")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    options.cache = options.cache.absolute()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    try:
        enter_own_mounts()
        result = compare(options)
    except (PrepareError, PeerError, SubjectError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = write_result(options.cache, result, "copy-up")
    show(result)
    print(f"\nwritten to {path}", file=sys.stderr)
    return exit_status(result["notes"])


if __name__ == "__main__":
    sys.exit(main())
