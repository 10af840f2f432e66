"""Compare whole builds by pylayers with those by dockerd's BuildKit: `python bench/build.py --source ml,nm,big`.

Every round does each kind of work once per side, and who is first changes from round to round. Before each run the
source files are read, so both sides find them in the page cache, and earlier writes are flushed. A cold build begins
with nothing but the base image on either side: no image, no layer, no build cache, no transferred context. Where it is
installed, `buildah bud` does the cold builds as well. With `--file-system` the sources and every side's data root lie
on a new file system of that kind, in a loop file below the cache, that goes with the comparison.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from buildah import Buildah
from disk import MAKE_DISK, call, enter_own_mounts, fresh_disk
from failure import FAILURES, describe_failure, exit_status
from limit import Limits, measure_limits
from peer import Docker, PeerError
from report import MEMORY_GOAL_BYTES, Work, describe_machine, render_table, write_result
from source import PrepareError, Source, measure_tree, prepare_base, prepare_source, read_tree
from subject import (
    SubjectError,
    build_call,
    build_process,
    check_layer,
    find_command,
    fresh_root,
    layer_tar,
)

from pylayers.engine import Engine

BASE = "pylayers-bench-base"
ABOVE_DESTINATION = 2  # /opt and /opt/NAME, where the base has no /opt/NAME; a layer names them both


@dataclass(slots=True)
class Comparison:
    """Hold what is compared, and the samples so far."""

    root: Path  # pylayers' data root
    base: Path
    docker: Docker | None
    buildah: Buildah | None
    file_system: str | None = None  # one of its own that all of it lies on
    notes: list[str] = field(default_factory=list)
    works: dict[tuple[str, str], Work] = field(default_factory=dict)
    with_cold: bool = True
    with_changed: bool = True
    docker_first: bool = False  # by turns: a disk may be slower for whoever comes after a large write

    def work(self, kind: str, source: Source) -> Work:
        """Return the samples of one kind of work on one source."""
        return self.works.setdefault((source.name, kind), Work(kind, source.name, self.file_system))

    def settle(self, source: Source) -> None:
        """Bring the source into the page cache and let earlier writes reach the disk."""
        os.sync()
        read_tree(source.directory)

    def play_round(self, source: Source) -> None:
        """Do each kind of work once per side."""
        if self.with_cold:
            self.cold(source)
            check_layer(self.root, name(source), measure_tree(source.directory), ABOVE_DESTINATION)
        self.unchanged(source)
        self.library(source)
        if self.with_changed:
            self.changed(source, "changed", source.changed_file)
            self.changed(source, "first", source.first_file)
            check_layer(self.root, name(source), measure_tree(source.directory), ABOVE_DESTINATION)

    def by_turns(self, ours: Callable[[], None], theirs: Callable[[Docker], None]) -> None:
        """Do both sides' part, in this round's order."""
        if self.docker is not None and self.docker_first:
            theirs(self.docker)
        ours()
        if self.docker is not None and not self.docker_first:
            theirs(self.docker)

    def cold(self, source: Source) -> None:
        """Build with nothing known but the base image."""
        work = self.work("cold", source)

        def ours() -> None:
            fresh_root(self.root, self.base, BASE)
            self.settle(source)
            self.ours(work, source, no_cache=True)

        def theirs(docker: Docker) -> None:
            docker.forget(name(source))
            self.settle(source)
            self.theirs(docker, work, source, no_cache=True)

        if not self.docker_first:
            self.cold_by_buildah(source)
        self.by_turns(ours, theirs)
        if self.docker_first:
            self.cold_by_buildah(source)

    def cold_by_buildah(self, source: Source) -> None:
        """Build with nothing known but the base image, by buildah; once it fails it isn't asked again."""
        if self.buildah is None:
            return
        try:
            self.buildah.forget(name(source))
            self.settle(source)
            self.work("cold", source).buildah_s.append(
                self.buildah.build(source.directory, source.dockerfile, name(source))
            )
            self.buildah.forget(name(source))
        except FAILURES as error:
            self.notes.append(describe_failure(f"cold build: {source.name}, buildah", error))
            self.buildah = None

    def unchanged(self, source: Source) -> None:
        """Build again with nothing changed; an untimed build before it has put everything into the cache."""
        work = self.work("unchanged", source)

        def ours() -> None:
            build_process(self.root, source.directory, source.dockerfile, name(source), no_cache=False)
            self.settle(source)
            self.ours(work, source, no_cache=False)

        def theirs(docker: Docker) -> None:
            docker.build(source.directory, source.dockerfile, name(source), no_cache=False)
            self.settle(source)
            self.theirs(docker, work, source, no_cache=False)

        self.by_turns(ours, theirs)

    def library(self, source: Source) -> None:
        """Build again with nothing changed through an engine that is open; the peer's time is its process's."""
        work = self.work("library", source)
        with Engine.open(self.root) as engine:
            build_call(engine, source.directory, source.dockerfile, name(source))
            self.settle(source)
            work.pylayers_s.append(build_call(engine, source.directory, source.dockerfile, name(source)))
        work.docker_s = self.work("unchanged", source).docker_s

    def changed(self, source: Source, kind: str, path: Path) -> None:
        """Build again with one file's content changed, once for each side."""
        work = self.work(kind, source)

        def ours() -> None:
            change(path)
            self.settle(source)
            self.ours(work, source, no_cache=False)

        def theirs(docker: Docker) -> None:
            change(path)
            self.settle(source)
            self.theirs(docker, work, source, no_cache=False)

        self.by_turns(ours, theirs)
        # The layer is checked against the source as it is now.
        build_process(self.root, source.directory, source.dockerfile, name(source), no_cache=False)

    def ours(self, work: Work, source: Source, *, no_cache: bool) -> None:
        """Time one pylayers process."""
        run = build_process(self.root, source.directory, source.dockerfile, name(source), no_cache=no_cache)
        work.pylayers_s.append(run.seconds)
        work.rss_anon_bytes.append(run.rss_anon_bytes)

    def theirs(self, docker: Docker, work: Work, source: Source, *, no_cache: bool) -> None:
        """Time one docker process, and see that its image is there."""
        work.docker_s.append(docker.build(source.directory, source.dockerfile, name(source), no_cache=no_cache))
        docker.image_id(name(source))


def name(source: Source) -> str:
    """Return the name of the image that a source is built to."""
    return f"pylayers-bench-{source.name}"


def change(path: Path) -> None:
    """Give a file new content."""
    path.write_text(f"{time.time_ns()}\n")
    time.sleep(0.05)  # a file younger than the file system's clock tick is racy, and would be read again


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, run the rounds and return the result."""
    cache: Path = options.cache.absolute()
    base = prepare_base(cache, small=options.quick)
    names = ["quick"] if options.quick else options.source.split(",")
    limits: dict[str, Limits] = {}
    with ExitStack() as stack:
        place, sources = open_place(stack, cache, names, options.file_system)
        machine = describe_machine(place)
        docker = open_docker(stack, place, options.docker_root, sources) if options.docker else None
        if docker is not None:
            docker.import_base(base, BASE)
        comparison = Comparison(
            place / "pylayers", base, docker, None, options.file_system,
            with_cold=options.cold, with_changed=options.changed,
        )  # fmt: skip
        if options.buildah and options.cold:
            comparison.buildah = open_buildah(stack, place, base, comparison.notes)
        buildah_version = None if comparison.buildah is None else comparison.buildah.version()
        if not options.cold:
            fresh_root(comparison.root, base, BASE)
        for number in range(options.rounds):
            comparison.docker_first = number % 2 == 1
            for source in sources:
                print(f"round {number + 1} of {options.rounds}: {source.name}", file=sys.stderr, flush=True)
                comparison.play_round(source)
                if source.name not in limits:
                    tar = layer_tar(comparison.root, name(source))
                    limits[source.name] = measure_limits(source.directory, tar, place / "limit.scratch")
        versions = None if docker is None else docker.versions()
        sizes = {source.name: asdict(measure_tree(source.directory)) for source in sources}
    for work in comparison.works.values():
        limit = limits[work.source]
        whole = work.kind in ("cold", "changed", "first")
        work.limit_s = max(limit.read_s, limit.sha256_s, limit.write_s) if whole else limit.stat_s
    return {
        "command": find_command()[1:] or ["pylayers"],
        "file_system": options.file_system,
        "machine": {**machine, "load_average_at_end": os.getloadavg()},
        "docker": versions,
        "buildah": buildah_version,
        "notes": comparison.notes,
        "rounds": options.rounds,
        "sources": sizes,
        "limits": {key: asdict(limit) for key, limit in limits.items()},
        "works": [work.summary() for work in comparison.works.values()],
    }


def open_place(
    stack: ExitStack, cache: Path, names: list[str], file_system: str | None
) -> tuple[Path, list[Source]]:
    """Return where data roots are to lie, and the sources there: a file system of the comparison's own has copies."""
    sources = [prepare_source(cache, each, BASE) for each in names]
    if file_system is None:
        return cache, sources
    place = stack.enter_context(fresh_disk(file_system, cache / "disk"))
    (place / "source").mkdir()
    for source in sources:
        call("cp", "-a", str(source.directory), str(place / "source" / source.name))
    return place, [prepare_source(place, each, BASE) for each in names]


def open_docker(stack: ExitStack, place: Path, root: Path | None, sources: list[Source]) -> Docker:
    """Start the peer until the stack is closed."""
    shared = {source.name: source.directory for source in sources}
    inside = None if root is None else root.absolute()
    return stack.enter_context(Docker(place / "docker", inside, shared, place / "dockerfile"))


def open_buildah(stack: ExitStack, place: Path, base: Path, notes: list[str]) -> Buildah | None:
    """Prepare buildah's storage until the stack is closed; a note tells where that can't be."""
    if shutil.which("buildah") is None:
        notes.append("cold builds: buildah is not installed")
        return None
    buildah = Buildah(place / "buildah")
    try:
        buildah.import_base(base, BASE)
    except FAILURES as error:
        notes.append(describe_failure("cold builds, buildah", error))
        return None
    stack.callback(buildah.close)
    return buildah


def show(result: dict[str, Any]) -> None:
    """Print a result for people."""
    print(render_table(result["works"]))
    for source, limit in result["limits"].items():
        print(
            f"\nlimits of {source}: read {limit['read_s']:.3f} s, sha256 {limit['sha256_s']:.3f} s,"
            f" write + fsync {limit['write_s']:.3f} s, stat {limit['stat_s']:.3f} s"
        )
    for note in result["notes"]:
        print(f"\n{note}")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare whole builds by pylayers and by docker.")
    parser.add_argument("--source", default="ml,nm,big", help="what to build, of ml, nm, big, quick")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small made-up tree, no docker")
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="pylayers alone")
    parser.add_argument("--no-buildah", dest="buildah", action="store_false", help="leave buildah's cold builds out")
    parser.add_argument("--no-changed", dest="changed", action="store_false", help="leave out the rebuild of one file")
    parser.add_argument("--no-cold", dest="cold", action="store_false", help="leave out the build from nothing")
    parser.add_argument("--file-system", choices=tuple(MAKE_DISK), help="build on a new one, not where the cache lies")
    parser.add_argument("--docker-root", type=Path, help="a Debian root that dockerd and docker are run from")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    if options.quick:
        options.docker = options.buildah = False
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


def result_kind(file_system: str | None) -> str:
    """Return what a result's name begins with."""
    return "build" if file_system is None else f"build-{file_system}"


def main() -> int:
    """Run the comparison; the exit status tells whether it could be made and memory kept its bound."""
    options = read_options()
    try:
        if options.file_system is not None:
            enter_own_mounts()
        result = compare(options)
    except (PrepareError, PeerError, SubjectError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = write_result(options.cache, result, result_kind(options.file_system))
    show(result)
    print(f"\nwritten to {path}", file=sys.stderr)
    peaks = [work["rss_anon_peak_bytes"] or 0 for work in result["works"]]
    if max(peaks) >= MEMORY_GOAL_BYTES:
        print(f"error: RssAnon reached {max(peaks) / 1e6:.0f} MB", file=sys.stderr)
        return 1
    return exit_status(result["notes"])


if __name__ == "__main__":
    sys.exit(main())
