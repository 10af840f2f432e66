"""The kernels beside the tools that do the same work: `python bench/kernel.py`.

chunk     content-defined boundaries and BLAKE3 of every chunk of a large file; casync writes its chunks as well, borg's
          chunker cuts alone
tarscan   every header of a layer's tar to an entry table; tarfile lists members, bsdtar prints names
diff      two tables of a tree with one entry in a hundred changed; the peer walks both trees
erofs     the metadata image from the table; mkfs.erofs reads the tar for it
gzip      the layer's tar for a push, its digest taken on the way and the tar proved by the states that lie beside a
          layer; a peer of our own has no states and hashes both sides; zstd the same
unpack    a docker-archive with gzipped layers into an empty store, to layers that can be mounted (`load`)

Every side runs in every round, in turns; the page cache holds the inputs. Each row has its limit beside it: what the
machine takes for the part that nobody can leave out.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import mmap
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from container_side import make_archive, timed
from failure import FAILURES, describe_failure, exit_status
from peer import Docker
from report import describe_machine, write_result
from source import PrepareError
from subject import SubjectError, find_command
from table import Row, render_rows

from pylayers._native import erofs, sha256, tardiff, tarscan, walk
from pylayers.store.chunk import chunk_content
from pylayers.store.entry import EntryTable
from pylayers.store.proof import TarProof
from pylayers.store.state import EVERY_BYTES
from pylayers.transfer.compress import compress_file

CHUNK_FILE_BYTES = 2 << 30
QUICK_FILE_BYTES = 32 << 20
CHANGED_SHARE = 100  # one entry in so many
WORKS = ("chunk", "tarscan", "diff", "erofs", "gzip", "zstd", "unpack")
BORG = """
import sys, time
from borg.chunker import Chunker
cutter = Chunker(0, 19, 23, 21, 4095)
with open(sys.argv[1], "rb") as file:
    started = time.perf_counter()
    for _ in cutter.chunkify(file):
        pass
    print(time.perf_counter() - started)
"""

Side = Callable[[], float]


def clock(work: Callable[[], object]) -> Side:
    """Return a side that times a call."""

    def run() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def run_tool(*command: str) -> Side:
    """Return a side that times a whole process."""
    return lambda: timed(command)


class Bench:
    """Hold the inputs, made when first asked for and kept in the cache."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.place: Path = options.cache / "kernel"
        self.place.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = []
        self.notes: list[str] = []

    # -- inputs

    def archive(self) -> Path:
        """Return the docker-archive of the source's image."""
        return make_archive(self.options.cache, self.options.source, small=self.options.quick)

    def tar(self) -> Path:
        """Return the tar of the source's layer."""
        path = self.place / f"{self.options.source}.tar"
        if not path.exists():
            partial = path.with_suffix(".partial")
            with tarfile.open(self.archive()) as archive:
                [image] = json.load(read_member(archive, "manifest.json"))
                with partial.open("wb") as out:
                    shutil.copyfileobj(read_member(archive, image["Layers"][-1]), out, 1 << 20)
            partial.rename(path)
        return path

    def packed_archive(self) -> Path:
        """Return the docker-archive with its layers gzipped."""
        path = self.place / f"{self.options.source}.gz-layers.tar"
        if not path.exists():
            partial = path.with_suffix(".partial")
            with tarfile.open(self.archive()) as archive, tarfile.open(partial, "w") as out:
                [image] = json.load(read_member(archive, "manifest.json"))
                for name in image["Layers"]:
                    self._add_packed(out, name, read_member(archive, name))
                for name in (image["Config"], "manifest.json"):
                    content = read_member(archive, name).read()
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    out.addfile(member, io.BytesIO(content))
            partial.rename(path)
        return path

    def _add_packed(self, out: tarfile.TarFile, name: str, stream: Any) -> None:
        plain, packed = self.place / "plain.scratch", self.place / "packed.scratch"
        with plain.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        with plain.open("rb") as file, packed.open("wb") as target:
            compress_file(file.fileno(), target.write, "gzip")
        member = tarfile.TarInfo(name)
        member.size = packed.stat().st_size
        with packed.open("rb") as file:
            out.addfile(member, file)
        plain.unlink()
        packed.unlink()

    def large_file(self) -> Path:
        """Return a file of random bytes."""
        size_bytes = QUICK_FILE_BYTES if self.options.quick else CHUNK_FILE_BYTES
        path = self.place / f"random-{size_bytes}"
        if not path.exists():
            generator = random.Random(5)
            with path.with_suffix(".partial").open("wb") as file:
                for _ in range(size_bytes >> 20):
                    file.write(generator.randbytes(1 << 20))
            path.with_suffix(".partial").rename(path)
        return path

    # -- rounds

    def compare(
        self, work: str, ours: Side, peers: dict[str, tuple[Side, float]], limit: Side, limit_goal: float | None = None
    ) -> None:
        """Run every side in each round, the order turned around in every second one, and keep a row for each peer."""
        sides = {"pylayers": ours, **{name: side for name, (side, _) in peers.items()}, "limit": limit}
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(self.options.rounds):
            print(f"round {number + 1} of {self.options.rounds}: {work}", file=sys.stderr, flush=True)
            for name in list(sides)[:: -1 if number % 2 else 1]:
                try:
                    samples[name].append(sides[name]())
                except FAILURES as error:
                    if name not in peers:
                        raise
                    self.notes.append(describe_failure(f"{work}, {name}", error))
                    del sides[name], samples[name]
                    peers = {peer: given for peer, given in peers.items() if peer != name}
        medians = {name: statistics.median(taken) for name, taken in samples.items()}
        for name, (_, goal) in peers.items():
            self.rows.append(
                Row(work, medians["pylayers"], name, medians[name], goal, medians["limit"], limit_goal, samples)
            )
        if not peers:
            self.rows.append(Row(work, medians["pylayers"], None, None, None, medians["limit"], limit_goal, samples))

    def missing(self, work: str, program: str) -> bool:
        """Tell whether a peer is missing, and note it."""
        if shutil.which(program) is None:
            self.notes.append(f"{work}: {program} is not installed")
            return True
        return False

    # -- works

    def chunk(self) -> None:
        """Chunk and hash a large file."""
        path = self.large_file()
        threads = len(os.sched_getaffinity(0))
        peers: dict[str, tuple[Side, float]] = {}
        if not self.missing("chunk", "casync"):
            peers["casync make"] = (lambda: self._casync(path), 10.0)
        if not self.missing("chunk", "borg"):
            peers["borg's chunker"] = (lambda: borg(path), 3.0)
        with mapped(path):  # and read, once
            limit = clock(lambda: with_mapped(path, lambda content: hash_file(content, threads)))
            if not self.missing("chunk", "b3sum"):
                limit = run_tool("b3sum", "--num-threads", str(threads), str(path))
        self.compare("chunk manifest", clock(lambda: with_mapped(path, chunk_content)), peers, limit, 1 / 0.8)

    def _casync(self, path: Path) -> float:
        place = self.place / "casync.scratch"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            return timed(("casync", "make", f"--store={place}/store", str(place / "index.caibx"), str(path)))
        finally:
            shutil.rmtree(place)

    def tarscan(self) -> None:
        """Read a tar's headers."""
        path = self.tar()
        peers: dict[str, tuple[Side, float]] = {"tarfile": (clock(lambda: list_members(path)), 20.0)}
        if not self.missing("tarscan", "bsdtar"):
            peers["bsdtar -t"] = (clock(lambda: run_quietly("bsdtar", "-tf", str(path))), 3.0)
        import numpy as np

        with mapped(path) as content:
            offsets = np.unique(EntryTable(*tarscan.scan(content)).array["header_offset"])

        def touch(content: memoryview) -> None:
            np.frombuffer(content, dtype=np.uint8).take(offsets).sum()

        limit = clock(lambda: with_mapped(path, touch))
        self.compare("tar scan", clock(lambda: with_mapped(path, tarscan.scan)), peers, limit, 2.0)

    def diff(self) -> None:
        """Compare two trees of which a hundredth differs."""
        with mapped(self.tar()) as content:
            records, heap = tarscan.scan(content)
        changed = bytearray(records)
        array = EntryTable(changed, heap).array
        array["mtime_ns"][::CHANGED_SHARE] += 1_000_000_000
        del array
        directory = self.options.cache / "source" / self.options.source
        if not directory.is_dir():
            raise PrepareError(f"{directory} is missing; run bench/build.py --source {self.options.source} first")
        directory = directory.resolve()
        found = len(tardiff.diff(records, heap, bytes(changed), heap, True)) // 12
        if not found:
            raise SubjectError("the tables are equal")
        peers = {
            "two walks by os.walk": (clock(lambda: walk_twice(directory)), 100.0),
            "two walks by our kernel": (clock(lambda: kernel_twice(directory)), 1.0),
        }
        new = bytes(changed)
        limit = clock(lambda: bytes(records) == new)
        self.compare("diff of two tables", clock(lambda: tardiff.diff(records, heap, new, heap, True)), peers, limit)

    def erofs(self) -> None:
        """Write the metadata image of a layer."""
        path = self.tar()
        with mapped(path) as content:
            records, heap = tarscan.scan(content)
        peers: dict[str, tuple[Side, float]] = {}
        tool = self._mkfs_erofs()
        if tool is not None:
            peers["mkfs.erofs --tar=i"] = (lambda: tool(path), 3.0)

        def write(kept: bytearray | None = None) -> None:
            # Neither side writes over a file: ext4 flushes one that was cut to nothing when it is closed.
            with tempfile.TemporaryFile(dir=self.place) as file:
                erofs.write(file.fileno(), records, heap, [path.stat().st_size])
                if kept is not None:
                    file.seek(0)
                    kept += file.read()

        image = bytearray()
        write(image)

        def limit() -> None:
            with tempfile.TemporaryFile(dir=self.place, buffering=0) as file:
                file.write(image)

        self.compare("EROFS index", clock(write), peers, clock(limit))

    def _mkfs_erofs(self) -> Callable[[Path], float] | None:
        """Find a mkfs.erofs that knows --tar, here or in the docker root; note why there is none."""
        root: Path | None = self.options.docker_root
        for inside in (None,) if root is None else (None, root.absolute()):
            prefix = () if inside is None else ("chroot", str(inside))
            told = subprocess.run((*prefix, "sh", "-c", "mkfs.erofs --help"), capture_output=True, text=True)
            if "--tar" in told.stdout + told.stderr:
                return lambda path: time_mkfs(path, inside, self.place)
        self.notes.append("erofs: no mkfs.erofs here knows --tar (1.7 and later)")
        return None

    def gzip(self) -> None:
        """Compress a layer as gzip."""
        self._compress("gzip", "pigz", ("pigz", "-p", str(os.cpu_count() or 1), "-c"), 3.0)

    def zstd(self) -> None:
        """Compress a layer as zstd."""
        self._compress("zstd", "zstd -3", ("zstd", f"-T{os.cpu_count() or 1}", "-3", "-q", "-c"), 1.0)

    def _compress(self, compression: str, name: str, command: tuple[str, ...], goal: float) -> None:
        path = self.tar()
        out = self.place / "packed.scratch"
        sizes: dict[str, int] = {}
        proof = make_proof(path)

        def ours(proof: TarProof | None) -> None:
            with path.open("rb") as source, out.open("wb") as target:
                made = compress_file(source.fileno(), target.write, compression, proof=proof)
            sizes["ours"] = made.size_bytes

        def theirs() -> None:
            with out.open("wb") as target:
                subprocess.run((*command, str(path)), stdout=target, check=True)
            sizes["theirs"] = out.stat().st_size

        peers = {} if self.missing(compression, command[0]) else {name: (clock(theirs), goal)}
        with mapped(path) as content:
            limit = clock(lambda: hashlib.sha256(content).digest())
            if proof is not None:
                peers["ours without states"] = (clock(lambda: ours(None)), 1.0)
            self.compare(f"{compression} for a push", clock(lambda: ours(proof)), peers, limit)
        out.unlink()
        if sizes.keys() == {"ours", "theirs"}:
            self.notes.append(f"{compression}: {sizes['ours'] / sizes['theirs']:.3f} times the size of {name}'s")

    def unpack(self) -> None:
        """Bring gzipped layers in."""
        path = self.packed_archive()
        root = self.place / "root.scratch"

        def ours() -> float:
            shutil.rmtree(root, ignore_errors=True)
            os.sync()
            return timed((*find_command(), "--root", str(root), "load", "-i", str(path)))

        def limit() -> float:
            return max(inflate(path), hash_both(path, self.archive()))

        with ExitStack() as stack:
            peers: dict[str, tuple[Side, float]] = {}
            if self.options.docker:
                inside = None if self.options.docker_root is None else self.options.docker_root.absolute()
                docker = Docker(self.options.cache / "docker", inside, {}, path.parent)

                def theirs() -> float:
                    docker.call("system", "prune", "--all", "--force")
                    os.sync()
                    return clock(lambda: docker.call("load", "-i", str(docker.inside(path))))()

                try:
                    stack.enter_context(docker)
                    peers["docker load"] = (theirs, 10.0)
                except FAILURES as error:
                    self.notes.append(describe_failure("unpack, docker load", error))
            self.compare("gzipped layers to a mountable image", ours, peers, limit, 1.3)
        shutil.rmtree(root)


def make_proof(path: Path) -> TarProof | None:
    """Return what the states beside a layer prove a tar by; None for a small tar and where no states are kept."""
    hasher = sha256.Sha256(EVERY_BYTES)
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            hasher.update(piece)
    return TarProof.find(hasher.states, path.stat().st_size, f"sha256:{hasher.digest().hex()}")


def time_mkfs(tar: Path, root: Path | None, place: Path) -> float:
    """Time mkfs.erofs on a tar, here or inside another root."""
    folder = place if root is None else root / "tmp"
    target = f"{place}/mkfs.scratch" if root is None else "/tmp/mkfs.scratch"
    prefix = () if root is None else ("chroot", str(root))
    (folder / "mkfs.scratch").unlink(missing_ok=True)
    with tar.open("rb") as stream:
        started = time.perf_counter()
        subprocess.run(
            (*prefix, "mkfs.erofs", "--quiet", "--tar=i", target),
            stdin=stream, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    (folder / "mkfs.scratch").unlink()
    return seconds


def read_member(archive: tarfile.TarFile, name: str) -> Any:
    """Open a member, through the links that archives have."""
    member = archive.getmember(name)
    while member.issym() or member.islnk():
        place = os.path.dirname(member.name) if member.issym() else ""
        member = archive.getmember(os.path.normpath(os.path.join(place, member.linkname)))
    found = archive.extractfile(member)
    if found is None:
        raise PrepareError(f"{name} of the archive is no file")
    return found


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Map a file that is in the page cache."""
    with path.open("rb") as file:
        while file.read(1 << 22):
            pass
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            yield view


def with_mapped(path: Path, work: Callable[[memoryview], object]) -> object:
    """Open and map a file for one piece of work, as the peers do."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        return work(view)


def hash_file(content: memoryview, threads: int) -> bytes:
    """Hash a whole file at once, as b3sum does."""
    from blake3 import blake3

    return blake3(content, max_threads=threads).digest()


def borg(path: Path) -> float:
    """Time borg's chunker in the Python that has it."""
    program = Path(shutil.which("borg") or "").resolve().read_text(errors="replace").splitlines()[0].removeprefix("#!")
    done = subprocess.run((*program.split()[:1], "-c", BORG, str(path)), capture_output=True, text=True)
    if done.returncode:
        raise SubjectError(f"borg's chunker: {done.stderr[-500:]}")
    return float(done.stdout)


def list_members(path: Path) -> int:
    """Count a tar's members."""
    with tarfile.open(path) as archive:
        return len(archive.getmembers())


def run_quietly(*command: str) -> None:
    """Run a program and drop what it prints."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def walk_twice(directory: Path) -> int:
    """Walk a tree twice and compare what lstat says."""
    seen = []
    for _ in range(2):
        found = {}
        for place, names, files in os.walk(directory):
            for name in (*names, *files):
                path = os.path.join(place, name)
                status = os.lstat(path)
                found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
        seen.append(found)
    return sum(seen[0].get(path) != status for path, status in seen[1].items())


def kernel_twice(directory: Path) -> int:
    """Walk a tree twice by the walk kernel and compare the tables."""
    tables = []
    for _ in range(2):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            tables.append(walk.walk(descriptor))
        finally:
            os.close(descriptor)
    return len(tardiff.diff(*tables[0], *tables[1], True))


def inflate(path: Path) -> float:
    """Time the decompressor alone over an archive's gzipped layers."""
    from isal import igzip

    seconds = 0.0
    with tarfile.open(path) as archive:
        for name in archive.getnames():
            stream = read_member(archive, name)
            if stream.read(2) != b"\x1f\x8b":
                continue
            stream.seek(0)
            started = time.perf_counter()
            with igzip.open(stream, "rb") as plain:  # type: ignore[no-untyped-call]
                while plain.read(1 << 20):
                    pass
            seconds += time.perf_counter() - started
    return seconds


def hash_both(*paths: Path) -> float:
    """Time sha256 of the packed and of the plain bytes."""
    seconds = 0.0
    for path in paths:
        with mapped(path) as content:
            seconds += clock(lambda content=content: hashlib.sha256(content).digest())()  # type: ignore[misc]
    return seconds


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run the works and return the result."""
    options.cache = options.cache.absolute()
    bench = Bench(options)
    machine = describe_machine(options.cache)
    for work in options.work.split(",") if options.work else WORKS:
        try:
            getattr(bench, work)()
        except FAILURES as error:
            bench.notes.append(describe_failure(work, error))
    return {
        "machine": {**machine, "load_average_at_end": os.getloadavg()},
        "rounds": options.rounds,
        "rows": [row.describe() for row in bench.rows],
        "notes": bench.notes,
    }


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare the kernels with the tools that do the same work.")
    parser.add_argument("--source", default="ml", help="whose layer: ml, nm, big or quick")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small made-up tree, no docker")
    parser.add_argument("--work", default="", help=f"only these, comma-separated, of {','.join(WORKS)}")
    parser.add_argument("--no-docker", dest="docker", action="store_false")
    parser.add_argument("--docker-root", type=Path, help="a Debian root that docker and mkfs.erofs are run from")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    if options.quick:
        options.docker, options.source = False, "quick"
    if options.rounds < 1 or set(options.work.split(",")) - {*WORKS, ""}:
        parser.error("--rounds is at least 1, and --work names works")
    return options


def main() -> int:
    """Run the comparison."""
    options = read_options()
    result = compare(options)
    path = write_result(options.cache, result, "kernel")
    print(render_rows(result["rows"]))
    for note in result["notes"]:
        print(f"\n{note}")
    print(f"\nwritten to {path}", file=sys.stderr)
    return exit_status(result["notes"])


if __name__ == "__main__":
    sys.exit(main())
