"""From an archive to a container, and back: pylayers beside docker, umoci, podman and the OCI runtime by hand.

Works, of one large image (Debian's minbase and the source's tree as a second layer):
load      an uncompressed docker-archive into an empty store, then the first container's `true` to its end
unpack    the same against `umoci unpack` of the image's OCI layout
run       start to exit of `true` in a container, as a whole process
library   the same as a call, against the runtime by hand: the one that ours uses on the very bundle that a container of
          ours left (the same config.json, seccomp's filter in it); runc on it; runc on a bundle of `runc spec`'s, which
          asks less of the kernel
commit    a one-file change in a container of the image, to an image
commit_large  1 GiB in 64 files, the same

All peers that are installed run in every round, in turns; the order changes each round. One that fails is left out from
then on, with a note. Limits: of load and unpack, sha256 of the archive, or its bytes written once with fsync, whichever
is slower; of commit, the start of a program that does nothing (`pylayers version`) and sha256 of the layer's tar; of
commit_large, sha256 of the layer's tar, and in a row of its own its bytes written once with fsync.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from container_side import Peer, Podman, Runtime, Sample, Subject, Umoci, make_archive
from failure import FAILURES, describe_failure, exit_status
from limit import timed_hash, timed_write
from peer import Docker, PeerError
from report import describe_machine, number, write_result
from source import PrepareError
from subject import SubjectError, find_command

# (work, peer) -> how many times faster pylayers has to be; below 1 it may be slower
GOALS = {
    ("load", "docker"): 20.0, ("unpack", "umoci"): 8.0, ("run", "docker"): 4.0, ("run", "podman"): 1.0,
    ("commit", "umoci"): 20.0, ("commit", "docker"): 1.0,
}  # fmt: skip
LIBRARY_GOAL_S = 0.010
OWN_BUNDLE = "our runtime, same bundle"
RUNS_A_ROUND = 5  # of the short works
SHORT_WORKS = ("run", "library", "commit")
LIMIT, WRITE = "limit", "one write with fsync"  # sides that are measured as peers are

def play(works: dict[str, dict[str, Sample]], rounds: int, notes: list[str]) -> dict[str, dict[str, list[float]]]:
    """Run every side of every work in each round, the order turned around in every second one; limits come last.

    A side that fails is not asked again, and a note says so.
    """
    samples: dict[str, dict[str, list[float]]] = {work: {side: [] for side in sides} for work, sides in works.items()}
    for turn in range(rounds):
        for work, sides in works.items():
            print(f"round {turn + 1} of {rounds}: {work}", file=sys.stderr, flush=True)
            for _ in range(RUNS_A_ROUND if work in SHORT_WORKS else 1):
                turns = [side for side in sides if side not in (LIMIT, WRITE)][:: -1 if turn % 2 else 1]
                for side in [*turns, *(side for side in sides if side in (LIMIT, WRITE))]:
                    if side not in samples[work]:
                        continue
                    try:
                        samples[work][side].append(sides[side]())
                    except FAILURES as error:
                        notes.append(describe_failure(f"{work}, {side}", error))
                        del samples[work][side]
    return samples


def summarise(samples: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return one row for every peer of every work, and one for a work without peers."""
    rows = []
    for work, sides in samples.items():
        if "pylayers" not in sides:
            continue
        ours = statistics.median(sides["pylayers"])
        limits = {side: statistics.median(sides[side]) for side in (LIMIT, WRITE) if side in sides}
        peers: list[str | None] = [side for side in sides if side not in ("pylayers", LIMIT)]
        for peer in peers or [None]:
            taken = sides[peer] if peer else []
            theirs = statistics.median(taken) if peer else None
            goal = GOALS.get((work, peer or ""))
            reached = None if goal is None or theirs is None else theirs / ours >= goal
            if work == "library" and peer == OWN_BUNDLE and theirs is not None:
                reached = ours - theirs <= LIBRARY_GOAL_S
            rows.append({
                "work": work, "peer": peer, "pylayers_s": ours, "peer_s": theirs,
                "ratio": None if theirs is None else theirs / ours,
                "goal": goal if (work, peer) != ("library", OWN_BUNDLE) else f"+{LIBRARY_GOAL_S * 1000:.0f} ms",
                "reached": reached, "limit_s": limits.get(LIMIT), "pylayers_samples_s": sides["pylayers"],
                "peer_samples_s": taken, "limit_samples_s": sides.get(LIMIT, []),
            })  # fmt: skip
    return rows


class Offer:
    """Collect the sides of each work; a peer that can't be prepared is left out, with a note."""

    def __init__(self, cache: Path, options: argparse.Namespace, archive: Path, notes: list[str]) -> None:
        self.options = options
        self.archive = archive
        self.notes = notes
        self.place = cache / "container"
        self.cache = cache
        self.subject = subject = Subject(self.place / "pylayers", archive)
        self.versions: dict[str, str] | None = None
        self.works: dict[str, dict[str, Sample]] = {
            "load": {"pylayers": subject.load},
            "run": {"pylayers": subject.run},
            "commit": {"pylayers": subject.commit, LIMIT: subject.start_and_hash},
            "commit_large": {"pylayers": subject.commit_large, LIMIT: subject.hash_large, WRITE: subject.write_large},
            "library": {"pylayers": subject.library},
            "unpack": {"pylayers": subject.load},
        }

    def wants(self, *works: str) -> bool:
        """Tell whether any of these works is asked for."""
        return not self.options.work or bool(set(works) & set(self.options.work.split(",")))

    def add_peers(self, stack: ExitStack) -> None:
        """Prepare each peer that is wanted and installed."""
        runtime = Runtime(self.place / "bundle", self.subject)
        runc: dict[str, Sample] = {
            OWN_BUNDLE: runtime.own, "runc, same bundle": runtime.same, "runc spec": runtime.plain
        }  # fmt: skip
        offered: tuple[tuple[str, tuple[str, ...], Callable[[], None]], ...] = (
            ("docker", ("load", "run", "commit"), lambda: self._docker(stack)),
            ("podman", ("run",), self._podman),
            ("umoci", ("unpack", "commit"), self._umoci),
            ("runc", ("library",), lambda: self.works["library"].update(runc)),
        )
        for program, works, prepare in offered:
            if not self.wants(*works) or (program == "docker" and not self.options.docker):
                continue
            if program != "docker" and shutil.which(program) is None:
                self.notes.append(f"{', '.join(works)}: {program} is not installed")
                continue
            try:
                prepare()
            except FAILURES as error:
                self.notes.append(describe_failure(f"{', '.join(works)}, {program}", error))

    def _docker(self, stack: ExitStack) -> None:
        root = None if self.options.docker_root is None else self.options.docker_root.absolute()
        docker = stack.enter_context(Docker(self.cache / "docker", root, {}, self.archive.parent))
        self.versions = docker.versions()
        peer = Peer(docker, self.archive)
        if not self.wants("load"):
            peer.load()
        for work, sample in (("load", peer.load), ("run", peer.run), ("commit", peer.commit)):
            self.works[work]["docker"] = sample

    def _podman(self) -> None:
        self.works["run"]["podman"] = Podman(self.place / "podman", self.archive).run

    def _umoci(self) -> None:
        umoci = Umoci(self.place / "umoci", self.subject)
        umoci.prepare()
        self.works["unpack"]["umoci"] = umoci.unpack
        self.works["commit"]["umoci"] = umoci.commit


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, run the rounds and return the result."""
    cache: Path = options.cache.absolute()
    archive = make_archive(cache, options.source)
    machine = describe_machine(cache)
    notes: list[str] = []
    offer = Offer(cache, options, archive, notes)
    with ExitStack() as stack:
        offer.subject.load()
        offer.add_peers(stack)
        works = {work: sides for work, sides in offer.works.items() if offer.wants(work)}
        if "umoci" not in works.get("unpack", {}) and "unpack" in works and "load" in works:
            del works["unpack"]  # the same as load then
        samples = play(works, options.rounds, notes)
    size_bytes = archive.stat().st_size
    limits = {"sha256_s": timed_hash(archive), "write_s": timed_write(cache / "limit.scratch", size_bytes)}
    rows = summarise(samples)
    for row in rows:
        if row["work"] in ("load", "unpack"):
            row["limit_s"] = max(limits.values())
    return {
        "command": list(find_command()),
        "machine": {**machine, "load_average_at_end": os.getloadavg()},
        "docker": offer.versions,
        "rounds": options.rounds,
        "archive_bytes": size_bytes,
        "limits": limits,
        "works": rows,
        "notes": notes,
    }


def show(result: dict[str, Any]) -> None:
    """Print a result for people."""
    print("| work | peer | pylayers s | peer s | ratio | goal | reached | limit s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |")
    for row in result["works"]:
        goal = row["goal"] if row["goal"] is not None else ""
        reached = "" if row["goal"] is None else "yes" if row["reached"] else "no"
        print(
            f"| {row['work']} | {row['peer'] or ''} | {row['pylayers_s']:.3f} | {number(row['peer_s'], '.3f')} |"
            f" {number(row['ratio'], '.1f')} | {goal} | {reached} | {number(row['limit_s'], '.3f')} |"
        )
    for note in result["notes"]:
        print(f"\n{note}")
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
    return exit_status(result["notes"])


if __name__ == "__main__":
    sys.exit(main())
