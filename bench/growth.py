"""How cost grows: `python bench/growth.py`.

entries   cold builds of trees with 10 and 100 times the files, each set beside 10 times the smaller one's time
bytes     cold builds of 10 and 100 times the bytes, on a btrfs of its own whose files share their blocks, so that 20 GB
          fit a small disk
tables    the difference of two entry tables with 10 and 100 times the rows
tarscan   the headers of a tar with 10 and 100 times the entries, from memory
erofs     the metadata image of a table with 10 and 100 times the entries
images    looking an image up and building again with nothing changed, in a store of 1 image and of 10,000
pair      two builds at once on one store, beside what two processors need for them at the least

The "limit" of a row is what it would take were the cost in proportion (or, for images, unchanged). Builds of entries
and bytes are calls in a process that has built before, so that no start-up flatters the smaller one; their memory is
watched. The limit of `pair` is told at `find_ideal`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from failure import FAILURES, describe_failure, exit_status
from growth_input import make_context, make_table, make_tar, shared_file_system
from limit import timed_write
from report import MEMORY_GOAL_BYTES, describe_machine, write_result
from source import PrepareError
from subject import SubjectError, build_apart, build_process
from table import MemoryRow, Row, render_rows

from pylayers._native import erofs, tardiff, tarscan
from pylayers.engine import Engine
from pylayers.engine.image import store_state
from pylayers.oci.platform import Platform
from pylayers.record import replace
from pylayers.store.entry import ENTRY_SIZE_BYTES

WORKS = ("entries", "bytes", "tables", "tarscan", "erofs", "images", "pair")
FACTORS = (1, 10, 100)
GROWTH_GOAL = 1.05
SAME_GOAL = 1.2
LOOKUPS = 25
CALL_ROUNDS = 9  # at least, of what takes milliseconds


class Growth:
    """Hold the sizes and the rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.place: Path = options.cache / "growth"
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        self.rows: list[Row | MemoryRow] = []
        self.notes: list[str] = []
        quick = options.quick
        self.files = 20 if quick else 3_000
        self.piece_bytes = 1 << 20 if quick else 200 << 20
        self.table_rows = 1_000 if quick else 100_000
        self.tar_entries = 100 if quick else 10_000
        self.image_count = 30 if quick else 10_000

    def add_growth(self, work: str, taken: dict[int, float]) -> None:
        """Keep a row for each step: the larger one's time beside ten times the smaller one's."""
        for before, after in itertools.pairwise(FACTORS):
            goal = None if self.options.quick else GROWTH_GOAL
            title = f"{work}, from {before} to {after} times"
            self.rows.append(Row(title, taken[after], None, None, None, taken[before] * after / before, goal))

    def build(self, root: Path, context: Path, reference: str, *, forget: bool = False) -> tuple[float, int]:
        """Build a context from nothing by a call; return the median seconds and the highest RssAnon.

        forget: its files are not in the page cache, which could not hold the largest's.
        """
        runs = []
        for _ in range(self.options.rounds):
            shutil.rmtree(root, ignore_errors=True)
            os.sync()
            if forget:
                forget_pages(context)
            runs.append(build_apart(root, context, context / "Dockerfile", reference))
        return statistics.median(run.seconds for run in runs), max(run.rss_anon_bytes for run in runs)

    def entries(self) -> None:
        """Build trees of more and more files."""
        taken = {}
        for factor in FACTORS:
            context = make_context(self.place / f"entries-{factor}")
            for number in range(self.files * factor):
                folder = context / "tree" / f"d{number // 1000}" / f"s{number // 50 % 20}"
                if number % 50 == 0:
                    folder.mkdir(parents=True, exist_ok=True)
                (folder / f"file{number}").write_bytes(b"%d" % number * 40)
            taken[factor], peak = self.build(self.place / "root", context, "entries")
            self.watch(f"cold build, {self.files * factor} files", peak)
            shutil.rmtree(context)
        self.add_growth("cold build, entries", taken)

    def watch(self, what: str, peak_bytes: int) -> None:
        """Keep a row for the memory of a build."""
        self.rows.append(MemoryRow(what, peak_bytes, MEMORY_GOAL_BYTES))

    def bytes(self) -> None:
        """Build more and more data whose blocks are shared."""
        with shared_file_system(self.place) as place:
            seed = place / "seed"
            with seed.open("wb") as file:
                for _ in range(self.piece_bytes >> 20):
                    file.write(os.urandom(1 << 20))
            taken = {}
            for factor in FACTORS:
                context = make_context(place / f"bytes-{factor}")
                (context / "tree").mkdir()
                for number in range(factor):
                    subprocess.run(
                        ("cp", "--reflink=always", str(seed), str(context / "tree" / f"part{number}")), check=True
                    )
                os.sync()
                taken[factor], peak = self.build(place / "root", context, "bytes", forget=True)
                self.watch(f"cold build, {self.piece_bytes * factor / 1e6:.0f} MB", peak)
            status = os.statvfs(place)
            used_bytes = (status.f_blocks - status.f_bfree) * status.f_frsize
            self.notes.append(f"bytes: {used_bytes / 1e9:.1f} GB of the file system are in use")
        self.add_growth("cold build, bytes", taken)

    def tables(self) -> None:
        """Compare larger and larger tables."""
        works: dict[int, Callable[[], object]] = {}
        for factor in FACTORS:
            records, heap = make_table(self.table_rows * factor)
            changed = bytearray(records)
            for row in range(1, len(changed) // ENTRY_SIZE_BYTES, 100):
                changed[row * ENTRY_SIZE_BYTES + 48] ^= 1  # the time's lowest byte
            works[factor] = functools.partial(tardiff.diff, records, heap, changed, heap, True)
            found = len(tardiff.diff(records, heap, changed, heap, True)) // struct.calcsize("<III")
            if found < self.table_rows * factor // 101:
                raise SubjectError(f"{found} differences were found")
        self.compare(f"diff of tables, to {self.table_rows * FACTORS[-1]} rows", works)

    def tarscan(self) -> None:
        """Read the headers of larger and larger tars."""
        tars = {factor: make_tar(self.tar_entries * factor) for factor in FACTORS}
        self.compare(f"tar scan, to {self.tar_entries * FACTORS[-1]} files", {
            factor: functools.partial(tarscan.scan, tar) for factor, tar in tars.items()
        })  # fmt: skip

    def erofs(self) -> None:
        """Write the metadata images of larger and larger tables."""
        def write(records: bytearray, heap: bytearray, tar_bytes: int) -> None:
            # A file that is written over would be flushed when it is closed, by ext4's rule for those cut to nothing.
            with tempfile.TemporaryFile(dir=self.place) as file:
                erofs.write(file.fileno(), records, heap, [tar_bytes])

        works: dict[int, Callable[[], object]] = {}
        for factor in FACTORS:
            tar = make_tar(self.tar_entries * factor)
            works[factor] = functools.partial(write, *tarscan.scan(tar), len(tar))
        self.compare(f"EROFS index, to {self.tar_entries * FACTORS[-1]} files", works)

    def compare(self, work: str, calls: dict[int, Callable[[], object]]) -> None:
        """Time calls of more and more work by turns, and keep their rows; a round before is not counted."""
        samples: dict[int, list[float]] = {factor: [] for factor in calls}
        for number in range(-1, max(self.options.rounds, CALL_ROUNDS)):
            for factor, call in calls.items():
                seconds = clock(call)
                if number >= 0:
                    samples[factor].append(seconds)
        self.add_growth(work, {factor: statistics.median(taken) for factor, taken in samples.items()})

    def images(self) -> None:
        """Fill a store with images; see what one of them takes to find, and what a build takes."""
        context = make_context(self.place / "images")
        for number in range(200):
            (context / f"file{number}").write_bytes(b"%d" % number)
        root = self.place / "root"
        shutil.rmtree(root, ignore_errors=True)
        self.rebuild(root, context)
        few = [self.rebuild(root, context) for _ in range(self.options.rounds)]
        with Engine.open(root) as engine:
            few_found = look_up(engine, ["growth:1"] * LOOKUPS)
            fill_store(engine, self.image_count)
            many_found = look_up(engine, [f"many:{at * self.image_count // LOOKUPS}" for at in range(LOOKUPS)])
        many = [self.rebuild(root, context) for _ in range(self.options.rounds)]
        goal = None if self.options.quick else SAME_GOAL
        for what, before, after in (("lookup", few_found, many_found), ("rebuild, nothing changed", few, many)):
            self.rows.append(
                Row(f"{what} among {self.image_count} images", statistics.median(after), None, None, None,
                    statistics.median(before), goal)
            )  # fmt: skip

    def rebuild(self, root: Path, context: Path) -> float:
        """Build again, as a process."""
        return build_process(root, context, context / "Dockerfile", "growth:1", no_cache=False).seconds

    def pair(self) -> None:
        """Build two trees one after the other, and both at once."""
        contexts = []
        for name in ("one", "two"):
            context = make_context(self.place / f"pair-{name}")
            for number in range(self.files):
                folder = context / "tree" / f"d{number // 100}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"file{number}").write_bytes(os.urandom(2048 if self.options.quick else 80_000))
            contexts.append(context)
        root = self.place / "root"
        together: list[float] = []
        alone: list[float] = []
        cpu: list[float] = []
        pinned: list[float] = []
        written: list[float] = []
        size_bytes = 2 * sum(path.stat().st_size for path in contexts[0].rglob("file*"))
        for _ in range(self.options.rounds):
            for samples in (alone, pinned, together):
                shutil.rmtree(root, ignore_errors=True)
                build_process(root, contexts[0], contexts[0] / "Dockerfile", "warm", no_cache=True)
                os.sync()
                works: list[Callable[[], object]] = [
                    functools.partial(self._build_one, root, context) for context in contexts
                ]
                if samples is together:
                    samples.append(clock(functools.partial(run_at_once, works)))
                    continue
                before = processor_seconds()
                with one_processor() if samples is pinned else nullcontext():
                    samples += [clock(work) for work in works]
                if samples is alone:
                    cpu.append(processor_seconds() - before)
            written.append(timed_write(self.place / "limit.scratch", size_bytes))
        ideal, told = find_ideal(*map(statistics.median, (cpu, alone, pinned, written)))
        self.notes.append(f"two builds at once: {told}")
        goal = None if self.options.quick else SAME_GOAL
        self.rows.append(
            Row("two builds at once on one store", statistics.median(together), None, None, None, ideal, goal)
        )

    def _build_one(self, root: Path, context: Path) -> None:
        build_process(root, context, context / "Dockerfile", context.name, no_cache=True)


def forget_pages(directory: Path) -> None:
    """Drop a tree's files from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def find_ideal(cpu_s: float, alone_s: float, pinned_s: float, written_s: float) -> tuple[float, str]:
    """Return the least that two builds at once can take on this machine's processors, and what it was found from.

    No schedule does the processors' work of both (user and system time, run one after the other) in less than its share
    for each processor, nor ends before one build alone would: the larger of the two is the ideal. It leaves out the
    disk, so it asks for more than can be had where writing is what takes long. Beside it are told, as what it might be
    mistaken for: one build held on one processor (its waits for the disk are in it, though two builds can fill each
    other's), and the two builds' bytes written once with fsync.
    """
    cores = len(os.sched_getaffinity(0))
    ideal = max(cpu_s / cores, alone_s)
    return ideal, (
        f"{cpu_s:.3f} s of processor for both, {cpu_s / cores:.3f} for each of {cores}; one alone {alone_s:.3f} s,"
        f" held on one processor {pinned_s:.3f} s; both's bytes written with fsync {written_s:.3f} s"
    )


def processor_seconds() -> float:
    """Return the user and system time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def one_processor() -> Iterator[None]:
    """Hold this thread, and what it starts, on one processor."""
    given = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(given)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, given)


def look_up(engine: Engine, names: list[str]) -> list[float]:
    """Time finding images by their names, each found once before, so that first uses of files do not count."""
    for name in names:
        engine.images.get(name)
    return [clock(functools.partial(engine.images.get, name)) for name in names]


def fill_store(engine: Engine, count: int) -> None:
    """Store images that differ in a label."""
    from pylayers.build.state import StageState

    state = StageState(platform=Platform.from_machine(os.uname().machine))
    for number in range(count):
        labelled = replace(state, config=replace(state.config, labels={"number": str(number)}))
        store_state(engine, labelled, f"docker.io/library/many:{number}")


def clock(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run_at_once(works: list[Callable[[], object]]) -> None:
    """Run calls in threads and wait for all. Raises what one of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def main() -> int:
    """Run the works."""
    parser = argparse.ArgumentParser(description="Measure how cost grows with entries, bytes, images and builds.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes: whether all of it works")
    parser.add_argument("--work", default="", help=f"only these, comma-separated, of {','.join(WORKS)}")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    options.cache = options.cache.absolute()
    if set(options.work.split(",")) - {*WORKS, ""} or options.rounds < 1:
        parser.error(f"--work names works of {', '.join(WORKS)}, and --rounds is at least 1")
    machine = describe_machine(options.cache)
    growth = Growth(options)
    for work in options.work.split(",") if options.work else WORKS:
        print(f"growth: {work}", file=sys.stderr, flush=True)
        try:
            getattr(growth, work)()
        except PrepareError as error:
            growth.notes.append(str(error))
        except FAILURES as error:
            growth.notes.append(describe_failure(work, error))
    shutil.rmtree(growth.place)
    result: dict[str, Any] = {
        "machine": {**machine, "load_average_at_end": os.getloadavg()},
        "rounds": options.rounds,
        "rows": [row.describe() for row in growth.rows],
        "notes": growth.notes,
    }
    path = write_result(options.cache, result, "growth")
    print(render_rows(result["rows"]))
    for note in growth.notes:
        print(f"\n{note}")
    print(f"\nwritten to {path}", file=sys.stderr)
    return exit_status(growth.notes)


if __name__ == "__main__":
    sys.exit(main())
