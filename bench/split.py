"""Change one file in a large COPY: what is written and what would be sent anew, split and whole.

    python bench/split.py [--files 4] [--file-mib 512] [--small 2000] [--size 256m]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pylayers.engine import Engine

BLOCK = 1 << 20


def make_tree(folder: Path, options: argparse.Namespace) -> None:
    """Write the large files and many small ones."""
    (folder / "tree" / "small").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY tree /tree\n")
    for number in range(options.files):
        with (folder / "tree" / f"large{number}").open("wb") as file:
            for _ in range(options.file_mib):
                file.write(os.urandom(BLOCK))
    for number in range(options.small):
        (folder / "tree" / "small" / f"{number:05}").write_bytes(os.urandom(50_000))


def main() -> int:
    """Build, change one small file, build again: both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--file-mib", type=int, default=512)
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--size", default="256m")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pylayers-bench-split-") as name:
        folder = Path(name)
        make_tree(folder, options)
        print("| build | layers | first s | after one change s | layers made anew | bytes made anew and to be sent |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for label, split in (("whole", None), (f"--split-layers {options.size}", options.size)):
            with Engine.open(folder / f"root-{label.split()[0].strip('-')}") as engine:
                time.sleep(0.05)
                started = time.perf_counter()
                first = engine.build(folder, split_layers=split)
                first_s = time.perf_counter() - started
                (folder / "tree" / "small" / "00007").write_bytes(os.urandom(50_000))
                time.sleep(0.05)
                started = time.perf_counter()
                second = engine.build(folder, split_layers=split)
                second_s = time.perf_counter() - started
                fresh = set(second.diff_ids) - set(first.diff_ids)
                size_bytes = sum(engine.store.layers.size_bytes(diff_id) for diff_id in fresh)
                print(
                    f"| {label} | {len(second.diff_ids)} | {first_s:.2f} | {second_s:.2f} | {len(fresh)} |"
                    f" {size_bytes / 1e6:.1f} MB |"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
