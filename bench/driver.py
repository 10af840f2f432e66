"""What each storage driver takes for images of many layers: `python bench/driver.py`.

Images of the same files, in 10 and in 100 layers unless --layers and --files say otherwise. Each driver that works here
runs on a file system that it is made for; the drivers take turns. A round does everything once, from an empty folder:

create   unpack every layer into snapshots (the layers' tars are stored already, as after a pull)
mount    prepare a container's snapshot and mount it
diff     change 1 % of the files, then find the changes
commit   turn the container's snapshot into a committed one
remove   remove every snapshot again
disk     what the driver's folder (or its file system) holds of one image and the changed container

zfs is zfs-fuse where the kernel has no OpenZFS. What this kernel lacks and user-mode Linux has (the device mapper) is
measured inside that; those rows say so and compare to no others: a kernel that is a process takes many times as long.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from disk import enter_own_mounts, fresh_disk
from report import describe_machine, write_result
from source import PrepareError
from zfs import used_bytes, zfs_pool

from pylayers.errors import PylayersError
from pylayers.image.unpack import unpack_one
from pylayers.snapshot import mapper
from pylayers.snapshot.changeset import disk_usage
from pylayers.snapshot.mount import mounted
from pylayers.snapshot.select import DRIVER_ORDER, open_driver, probe_driver
from pylayers.snapshot.snapshotter import Snapshotter
from pylayers.snapshot.zfscommand import uses_fuse
from pylayers.store.entry import EntryTable
from pylayers.store.layer import Layer
from pylayers.store.tarindex import index_content

FILE_BYTES = 5_000
INSIDE_LIMIT_S = 900
WORKS = ("create", "mount", "diff", "commit", "remove")


def make_layers(directory: Path, count: int, files: int) -> list[Layer]:
    """Write the image's files as a number of layers; names and contents don't depend on it."""
    chance = random.Random(count)
    layers = []
    directory.mkdir()
    for number in range(count):
        path = directory / f"{number}.tar"
        with tarfile.open(path, "w") as out:
            for at in range(number, files, count):
                member = tarfile.TarInfo(f"d{at % 100:02}/f{at:05}")
                member.size, member.mtime = FILE_BYTES, 1_600_000_000
                out.addfile(member, io.BytesIO(chance.randbytes(FILE_BYTES)))
        content = path.read_bytes()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        layers.append(Layer(digest, len(content), path, EntryTable(*index_content(memoryview(content), path.name))))
    return layers


def change_files(top: Path, files: int) -> None:
    """Change a hundredth of the files: rewrite, delete, add."""
    for at in range(0, files, 100):
        path = top / f"d{at % 100:02}" / f"f{at:05}"
        if at % 300 == 0:
            path.unlink()
        else:
            path.write_bytes(b"changed")
        (top / f"new-{at}").write_bytes(b"new")


def play(driver: Snapshotter, layers: list[Layer], files: int, scratch: Path) -> tuple[dict[str, float], int]:
    """Do every work once; return the seconds of each and the disk bytes before the end."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(work: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[work] = seconds.get(work, 0.0) + time.perf_counter() - started

    before = measure_disk(driver, scratch)
    with timed("create"):
        parent = None
        for number, layer in enumerate(layers):
            unpack_one(driver, f"layer-{number}", parent, layer)
            parent = f"layer-{number}"
    started = time.perf_counter()
    with mounted(driver.prepare("container", parent), scratch) as top:
        seconds["mount"] = time.perf_counter() - started
        change_files(top, files)
    with timed("diff"):
        driver.changes("container").close()
    with timed("commit"):
        driver.commit("committed", "container")
    disk_bytes = measure_disk(driver, scratch) - before
    with timed("remove"):
        for one in reversed(list(driver.walk())):
            driver.remove(one.name)
    return seconds, disk_bytes


def measure_disk(driver: Snapshotter, scratch: Path) -> int:
    """Count what is taken: by the whole file system where snapshots share blocks, else by the driver's folder."""
    os.sync()
    if driver.name == "zfs":
        return used_bytes(scratch)
    if driver.name == "btrfs":
        found = os.statvfs(scratch)
        return (found.f_blocks - found.f_bfree) * found.f_frsize
    return disk_usage(scratch / "root" / driver.name)[0]


def find_grounds(stack: ExitStack, place: Path, wanted: list[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Give each driver that works a directory on its file system; return them, and why the others have none."""
    grounds: dict[str, Path] = {}
    absent: dict[str, str] = {}
    for name in wanted:
        ground = place / name
        ground.mkdir(parents=True)
        try:
            if name == "btrfs":
                ground = stack.enter_context(fresh_disk("btrfs", ground))
            elif name == "zfs":
                ground = stack.enter_context(zfs_pool(ground))
            found = probe_driver(ground / "root", name).probe
        except (PrepareError, PylayersError, OSError, subprocess.SubprocessError) as error:
            absent[name] = str(error)
            continue
        if found.usable:
            grounds[name] = ground
        else:
            absent[name] = found.reason
    return grounds, absent


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Let the drivers take turns."""
    place = options.cache / "driver"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        images = {
            count: make_layers(place / f"layers-{count}", count, options.files)
            for count in map(int, options.layers.split(","))
        }
        grounds, absent = find_grounds(stack, place / "ground", options.driver.split(","))
        samples: dict[tuple[str, int], list[tuple[dict[str, float], int]]] = {}
        for turn in range(options.rounds):
            names = list(grounds)
            for name in names[turn % max(len(names), 1) :] + names[: turn % max(len(names), 1)]:
                for count, layers in images.items():
                    print(f"round {turn + 1}: {name}, {count} layers", file=sys.stderr)
                    driver = open_driver(grounds[name] / "root", name)
                    try:
                        done = play(driver, layers, options.files, grounds[name])
                        samples.setdefault((name, count), []).append(done)
                    finally:
                        driver.close()
        for (name, count), all_done in samples.items():
            disk_bytes = int(statistics.median(size_bytes for _, size_bytes in all_done))
            row: dict[str, Any] = {"driver": name, "layers": count, "disk_bytes": disk_bytes}
            row |= {f"{work}_s": statistics.median(seconds[work] for seconds, _ in all_done) for work in WORKS}
            row["samples"] = all_done
            rows.append(row)
        machine = describe_machine(place)
    with suppress(OSError):
        shutil.rmtree(place)
    return {"machine": machine, "rounds": options.rounds, "works": rows, "absent": absent}


def measure_inside(options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """Measure devicemapper in user-mode Linux; return its rows and "", or none and the reason."""
    from tests.kernels.launcher import find_kernel, run_inside

    program, reason = find_kernel()
    if not program:
        return [], reason
    with tempfile.TemporaryDirectory() as name:
        report = Path(name)
        # Files are written to a tmpfs inside, and the result is handed out through the host's file system.
        script = (
            f"{shlex.quote(sys.executable)} bench/driver.py --driver devicemapper --rounds {options.rounds}"
            f" --layers {shlex.quote(options.layers)} --files {options.files} --cache /dev/shm/bench"
            f" && cp /dev/shm/bench/results/driver-*.json {shlex.quote(name)}/result.json"
        )
        settings = {"PYLAYERS_DM_LOOPDATASIZE": str(2 << 30)}
        done = run_inside(["sh", "-c", script], report, timeout_seconds=INSIDE_LIMIT_S, settings=settings)
        if done.status != 0:
            return [], f"user-mode Linux {done.kernel}: left with {done.status}: {done.output[-500:]}"
        result = json.loads((report / "result.json").read_text())
    return [{**row, "inside": f"user-mode Linux {done.kernel}"} for row in result["works"]], ""


def show(result: dict[str, Any]) -> None:
    """Print a result for people."""
    print(f"| driver | layers | {' | '.join(f'{work} ms' for work in WORKS)} | disk MB |")
    print(f"| --- | ---: |{' ---: |' * (len(WORKS) + 1)}")
    for row in sorted(result["works"], key=place_of):
        name = f"{row['driver']} ({row['inside']})" if "inside" in row else row["driver"]
        cells = " | ".join(f"{row[f'{work}_s'] * 1e3:.1f}" for work in WORKS)
        print(f"| {name} | {row['layers']} | {cells} | {row['disk_bytes'] / 1e6:.1f} |")
    for name, reason in result["absent"].items():
        print(f"{name}: not here: {reason}")


def place_of(row: dict[str, Any]) -> tuple[bool, int, int]:
    """Return a row's place in the table: what was measured in another kernel comes last."""
    return "inside" in row, row["layers"], DRIVER_ORDER.index(row["driver"])


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="Compare the storage drivers on images of many layers.")
    parser.add_argument("--driver", default=",".join(DRIVER_ORDER), help="only these, comma-separated")
    parser.add_argument("--layers", default="10,100", help="how many layers the images have, comma-separated")
    parser.add_argument("--files", type=int, default=8_000, help="how many files an image has")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    options.cache = options.cache.absolute()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    if "zfs" in options.driver.split(",") and uses_fuse():
        enter_own_mounts()
    result = compare(options)
    if "devicemapper" in result["absent"] and not mapper.CONTROL.exists():
        rows, reason = measure_inside(options)
        result["works"] += rows
        result["absent"]["devicemapper"] += f"; {reason or 'its rows are from user-mode Linux'}"
    path = write_result(options.cache, result, "driver")
    show(result)
    print(f"\nwritten to {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
