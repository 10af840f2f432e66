"""How cost grows: `python bench/growth.py`.

entries   cold builds of trees with 10 and 100 times the files, each set beside 10 times the smaller one's time
bytes     cold builds of 10 and 100 times the bytes, on a btrfs of its own whose files share their blocks, so that 20 GB
          fit a small disk; RssAnon is watched
tables    the difference of two entry tables with 10 and 100 times the rows
images    looking an image up and building again with nothing changed, in a store of 1 image and of 10,000
pair      two builds at once on one store, beside the same two one after the other

The "limit" of a row is what it would take were the cost in proportion (or, for images and pair, unchanged).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report import MEMORY_GOAL_BYTES, describe_machine, write_result
from source import PrepareError
from subject import SubjectError, build_process
from table import Row, render_rows

from pylayers._native import tardiff
from pylayers.engine import Engine
from pylayers.engine.image import store_state
from pylayers.oci.platform import Platform
from pylayers.record import replace
from pylayers.store.entry import ENTRY_SIZE_BYTES, entry_dtype

WORKS = ("entries", "bytes", "tables", "images", "pair")
FACTORS = (1, 10, 100)
GROWTH_GOAL = 1.05
SAME_GOAL = 1.2
NAME_BYTES = 16
LOOKUPS = 25


class Growth:
    """Hold the sizes and the rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.place: Path = options.cache / "growth"
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        self.rows: list[Row] = []
        self.notes: list[str] = []
        quick = options.quick
        self.files = 20 if quick else 3_000
        self.piece_bytes = 1 << 20 if quick else 200 << 20
        self.table_rows = 1_000 if quick else 100_000
        self.image_count = 30 if quick else 10_000

    def add_growth(self, work: str, taken: dict[int, float]) -> None:
        """Keep a row for each step: the larger one's time beside ten times the smaller one's."""
        for before, after in itertools.pairwise(FACTORS):
            goal = None if self.options.quick else GROWTH_GOAL
            title = f"{work}, from {before} to {after} times"
            self.rows.append(Row(title, taken[after], None, None, None, taken[before] * after / before, goal))

    def build(self, root: Path, context: Path, reference: str) -> tuple[float, int]:
        """Build a context from nothing; return the median seconds and the highest RssAnon."""
        runs = []
        for _ in range(self.options.rounds):
            shutil.rmtree(root, ignore_errors=True)
            os.sync()
            runs.append(build_process(root, context, context / "Dockerfile", reference, no_cache=True))
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
            self.watch(f"entries, {self.files * factor} files", peak)
            shutil.rmtree(context)
        self.add_growth("cold build, entries", taken)

    def watch(self, what: str, peak_bytes: int) -> None:
        """Note the memory of a build."""
        bound = "" if peak_bytes < MEMORY_GOAL_BYTES else f", above {MEMORY_GOAL_BYTES / 1e6:.0f}"
        self.notes.append(f"{what}: RssAnon {peak_bytes / 1e6:.0f} MB{bound}")

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
                taken[factor], peak = self.build(place / "root", context, "bytes")
                self.watch(f"bytes, {self.piece_bytes * factor / 1e9:.1f} GB", peak)
            status = os.statvfs(place)
            used_bytes = (status.f_blocks - status.f_bfree) * status.f_frsize
            self.notes.append(f"bytes: {used_bytes / 1e9:.1f} GB of the file system are in use")
        self.add_growth("cold build, bytes", taken)

    def tables(self) -> None:
        """Compare larger and larger tables."""
        taken = {}
        for factor in FACTORS:
            records, heap = make_table(self.table_rows * factor)
            changed = bytearray(records)
            for row in range(1, len(changed) // ENTRY_SIZE_BYTES, 100):
                changed[row * ENTRY_SIZE_BYTES + 48] ^= 1  # the time's lowest byte
            seconds = []
            for _ in range(self.options.rounds):
                started = time.perf_counter()
                found = len(tardiff.diff(records, heap, changed, heap, True)) // struct.calcsize("<III")
                seconds.append(time.perf_counter() - started)
            if found < self.table_rows * factor // 101:
                raise SubjectError(f"{found} differences were found")
            taken[factor] = statistics.median(seconds)
        self.add_growth(f"diff of tables, to {self.table_rows * FACTORS[-1]} rows", taken)

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
        apart, together = [], []
        for _ in range(self.options.rounds):
            shutil.rmtree(root, ignore_errors=True)
            build_process(root, contexts[0], contexts[0] / "Dockerfile", "warm", no_cache=True)
            apart.append(clock(lambda: [self._build_one(root, context) for context in contexts]))
            works = [functools.partial(self._build_one, root, context) for context in contexts]
            together.append(clock(functools.partial(run_at_once, works)))
        goal = None if self.options.quick else SAME_GOAL
        self.rows.append(
            Row("two builds at once on one store", statistics.median(together), None, None, None,
                statistics.median(apart), goal)
        )  # fmt: skip

    def _build_one(self, root: Path, context: Path) -> None:
        build_process(root, context, context / "Dockerfile", context.name, no_cache=True)


def make_context(place: Path) -> Path:
    """Make a context that is copied whole."""
    place.mkdir(parents=True)
    (place / "Dockerfile").write_text("FROM scratch\nCOPY . /tree\n")
    return place


@contextmanager
def shared_file_system(place: Path) -> Iterator[Path]:
    """Mount a btrfs from a sparse file: files there can share their blocks. Raises PrepareError where that can't be."""
    image, point = place / "btrfs.image", place / "btrfs"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 30)
    for command in (("mkfs.btrfs", "-q", str(image)), ("mount", "-o", "loop", str(image), str(point))):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise PrepareError(f"bytes: {error}") from error
        if done.returncode:
            raise PrepareError(f"bytes: {' '.join(command)}: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(("umount", str(point)), check=True)
        image.unlink()


def make_table(count: int) -> tuple[bytes, bytes]:
    """Make a table of files in one directory, their names in order."""
    import numpy as np

    rows = np.zeros(count + 1, dtype=entry_dtype())
    rows["mode"] = 0o100644
    rows["mode"][0] = 0o40755
    rows["nlink"] = 1
    rows["path_length"][1:] = NAME_BYTES
    rows["path_offset"][1:] = np.arange(count, dtype=np.uint64) * NAME_BYTES
    rows["size_bytes"][1:] = np.arange(count, dtype=np.uint64) % 9999
    numbers = np.arange(count, dtype=np.uint64)
    names = np.full((count, NAME_BYTES), ord("f"), dtype=np.uint8)
    for place in range(1, NAME_BYTES):
        names[:, -place] = ord("0") + (numbers // 10 ** (place - 1)) % 10
    return rows.tobytes(), names.tobytes()


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
        made = store_state(engine, labelled)
        engine.store.metadata.references.set(f"docker.io/library/many:{number}", made.digest)


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
        except (PrepareError, SubjectError) as error:
            growth.notes.append(str(error))
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
