"""The benchmarks' one command, with small inputs: that it works, never how fast."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pylayers._native.sha256 import is_fast
from tests.e2e.cli_process import CHECKOUT

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="layers keep owners")]
WORKS = {
    "cold build: quick", "rebuild, nothing changed, process: quick", "rebuild, nothing changed, call: quick",
    "rebuild, one file changed: quick", "chunk manifest", "tar scan", "diff of two tables", "EROFS index",
    "gzip for a push", "zstd for a push", "gzipped layers to a mountable image",
    "cold build, entries, from 1 to 10 times", "diff of tables, to 100000 rows, from 10 to 100 times",
    "tar scan, to 10000 files, from 10 to 100 times", "EROFS index, to 10000 files, from 1 to 10 times",
    "lookup among 30 images", "rebuild, nothing changed among 30 images", "two builds at once on one store",
    "rebuild, nothing changed, 200 files, process", "hash a file of 4 KiB, warm", "hash a file of 64 MiB, warm",
    "rebuild, the first file changed: quick",
}  # fmt: skip

# Builds on a file system of their own, where the tool that makes it is installed.
WORKS |= {
    f"{work}: quick, on {kind}"
    for kind in ("xfs", "btrfs")
    if shutil.which(f"mkfs.{kind}")
    for work in ("cold build", "rebuild, one file changed", "rebuild, the first file changed")
}


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
    sized = {row["work"]: row for row in rows if row.get("unit") == "MB"}
    assert sized.keys() >= {"peak RssAnon: cold build: quick", "peak RssAnon: cold build, 2000 files"}
    for row in sized.values():
        assert row["limit_reached"] == (row["pylayers_mb"] < row["limit_mb"])
        assert 1 < row["pylayers_mb"] < 10_000
    for row in rows:
        if row["work"] in sized:
            continue
        assert row["pylayers_s"] > 0
        assert row["limit_s"] is None or row["limit_s"] > 0
        if row["peer"] is not None:
            assert row["ratio"] == pytest.approx(row["peer_s"] / row["pylayers_s"])
    assert not [note for note in result["notes"] if "left with" in note or "failed" in note], result["notes"]
    assert any("modules beyond Python's own" in note and " ms" in note for note in result["notes"])
    table = path.with_suffix(".md").read_text()
    assert all(f"| {work} |" in table for work in {*WORKS, *sized})
    assert not (cache / "disk").exists() or not list((cache / "disk").iterdir())
    picture = ElementTree.fromstring(path.with_suffix(".svg").read_text())
    bars = [one for one in picture.iter() if one.tag.endswith("rect")]
    assert len(bars) > len(rows)
    texts = {one.text for one in picture.iter() if one.tag.endswith("text")}
    assert texts >= {*WORKS, *sized}
    # The same once more, made slower and larger by hand: the history says so, for each peer in its own line.
    [scan, *_] = peers = [row for row in rows if row["work"] == "diff of two tables"]
    assert len({row["peer"] for row in peers}) == len(peers) > 1
    memory = sized["peak RssAnon: cold build: quick"]
    slow = {**result, "rows": [{**scan, "pylayers_s": scan["pylayers_s"] * 2},
                               {**memory, "pylayers_mb": memory["pylayers_mb"] * 3}]}  # fmt: skip
    (cache / "results" / "all-99990101T000000Z.json").write_text(json.dumps(slow))
    told = run_bench("history", "--cache", str(cache)).stdout.splitlines()
    lines = {row["peer"]: next(line for line in told if f"| {row['work']} | {row['peer']} |" in line) for row in peers}
    assert {peer for peer, line in lines.items() if "slower: 2.00 of the best" in line} == {scan["peer"]}
    assert "larger: 3.00 of the best" in next(line for line in told if f"| {memory['work']} |" in line)


def test_a_failing_work_leaves_the_others_their_rows(tmp_path: Path) -> None:
    """A tool that breaks costs its own row: a note names it, the rest is measured, and the exit status tells."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "pigz").write_text("#!/bin/sh\necho no luck >&2\nexit 3\n")
    (tools / "pigz").chmod(0o755)
    cache = tmp_path / "cache"
    place = f"{tools}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "bench" / "kernel.py"), "--quick", "--rounds", "1", "--work",
         "gzip,diff,tarscan", "--cache", str(cache)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PATH": place},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    [path] = (cache / "results").glob("kernel-*.json")
    result = json.loads(path.read_text())
    found = {(row["work"], row["peer"]) for row in result["rows"]}
    assert found >= {("diff of two tables", "two walks by os.walk"), ("tar scan", "tarfile")}
    beside = "ours without states" if is_fast() else None
    assert {peer for work, peer in found if work == "gzip for a push"} == {beside}
    failed = [note for note in result["notes"] if note.startswith("failed: ")]
    assert len(failed) == 1
    assert "failed: gzip for a push, pigz: CalledProcessError" in failed[0]
