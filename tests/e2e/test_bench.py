"""The benchmarks' one command, with small inputs: that it works, never how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.e2e.cli_process import CHECKOUT

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="layers keep owners")]
WORKS = {
    "cold build: quick", "rebuild, nothing changed, process: quick", "rebuild, nothing changed, call: quick",
    "rebuild, one file changed: quick", "chunk manifest", "tar scan", "diff of two tables", "EROFS index",
    "gzip for a push", "zstd for a push", "gzipped layers to a mountable image",
    "cold build, entries, from 1 to 10 times", "diff of tables, to 100000 rows, from 10 to 100 times",
    "lookup among 30 images", "rebuild, nothing changed among 30 images", "two builds at once on one store",
}  # fmt: skip


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "bench"), *arguments], capture_output=True, text=True, env=environment
    )


def test_quick_run_and_history(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert "there is no result" in run_bench("history", "--cache", str(cache)).stderr
    done = run_bench("--quick", "--rounds", "1", "--cache", str(cache))
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (cache / "results").glob("all-*.json")
    result = json.loads(path.read_text())
    rows = result["rows"]
    assert {row["work"] for row in rows} >= WORKS
    for row in rows:
        assert row["pylayers_s"] > 0
        assert row["limit_s"] is None or row["limit_s"] > 0
        if row["peer"] is not None:
            assert row["ratio"] == pytest.approx(row["peer_s"] / row["pylayers_s"])
    assert not [note for note in result["notes"] if "left with" in note], result["notes"]
    table = path.with_suffix(".md").read_text()
    assert all(f"| {work} |" in table for work in WORKS)
    picture = ElementTree.fromstring(path.with_suffix(".svg").read_text())
    bars = [one for one in picture.iter() if one.tag.endswith("rect")]
    assert len(bars) > len(rows)
    # The same once more, made slower by hand: the history says so.
    slow = {**result, "rows": [{**rows[0], "pylayers_s": rows[0]["pylayers_s"] * 2}]}
    (cache / "results" / "all-99990101T000000Z.json").write_text(json.dumps(slow))
    told = run_bench("history", "--cache", str(cache)).stdout
    assert "slower: 2.00 of the best" in next(line for line in told.splitlines() if rows[0]["work"] in line)
