"""What a comparison says: its numbers with the machine they were measured on, as JSON and as a Markdown table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOALS = {
    ("cold", "ml"): 15.0, ("cold", "nm"): 15.0, ("cold", "big"): 10.0,
    ("unchanged", "ml"): 12.0, ("unchanged", "nm"): 12.0, ("unchanged", "big"): 4.0,
    ("library", "ml"): 25.0, ("library", "nm"): 25.0,
}  # fmt: skip
# On a file system of the comparison's own that shares blocks: issue 5's goals where nothing is copied.
REFLINK_SYSTEMS = ("xfs", "btrfs")
REFLINK_GOALS = {("cold", "big"): 20.0, ("changed", "big"): 20.0}
MEMORY_GOAL_BYTES = 200_000_000
TITLES = {
    "cold": "cold build",
    "unchanged": "unchanged rebuild, process",
    "library": "unchanged rebuild, library call",
    "changed": "one file changed, process",
    "first": "the first file changed, process",
}


@dataclass(slots=True)
class Work:
    """The samples of one kind of work on one source, in seconds."""

    kind: str
    source: str
    file_system: str | None = None  # one of its own that it was done on; else where the cache lies
    pylayers_s: list[float] = field(default_factory=list)
    docker_s: list[float] = field(default_factory=list)
    buildah_s: list[float] = field(default_factory=list)
    rss_anon_bytes: list[int] = field(default_factory=list)
    limit_s: float | None = None

    def summary(self) -> dict[str, Any]:
        """Return the work with its medians and how far it is from its goal."""
        ours = statistics.median(self.pylayers_s)
        theirs = statistics.median(self.docker_s) if self.docker_s else None
        goals = REFLINK_GOALS if self.file_system in REFLINK_SYSTEMS else GOALS
        goal = goals.get((self.kind, self.source))
        ratio = None if theirs is None else theirs / ours
        return {
            "work": self.kind,
            "source": self.source,
            "file_system": self.file_system,
            "pylayers_s": ours,
            "docker_s": theirs,
            "ratio": ratio,
            "goal": goal,
            "reached": None if ratio is None or goal is None else ratio >= goal,
            "limit_s": self.limit_s,
            "rss_anon_peak_bytes": max(self.rss_anon_bytes, default=None),
            "pylayers_samples_s": self.pylayers_s,
            "docker_samples_s": self.docker_s,
            "buildah_s": statistics.median(self.buildah_s) if self.buildah_s else None,
            "buildah_samples_s": self.buildah_s,
        }


def describe_machine(data: Path) -> dict[str, Any]:
    """Describe what numbers depend on; data lies on the file system that layers are written to."""
    from pylayers.cli.version import VERSION

    repository = Path(__file__).resolve().parents[1]
    return {
        "cpu": read_field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": read_field(Path("/proc/meminfo"), "MemTotal"),
        "kernel": platform.release(),
        "file_system": ask("stat", "--file-system", "--format", "%T", str(data)),
        "python": sys.version.split()[0],
        "pylayers": VERSION,
        "commit": ask("git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=12"),
        "load_average_at_start": os.getloadavg(),
    }


def read_field(path: Path, name: str) -> str:
    """Return the value of the first `name: value` line of a file in /proc."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def ask(*command: str) -> str:
    """Return what a command prints, or "unknown" where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def render_table(rows: list[dict[str, Any]]) -> str:
    """Write the Markdown table."""
    lines = [
        "| work | pylayers s | docker s | ratio | goal | buildah s | ratio | limit s | RssAnon MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        goal = "" if row["goal"] is None else f"≥ {row['goal']:g}"
        if row["reached"] is not None:
            goal += " ✓" if row["reached"] else " ✗"
        memory, buildah = row["rss_anon_peak_bytes"], row["buildah_s"]
        beside = None if buildah is None else buildah / row["pylayers_s"]
        lines.append(
            f"| {TITLES[row['work']]}: {name_input(row)} | {row['pylayers_s']:.3f} | {number(row['docker_s'], '.3f')} |"
            f" {number(row['ratio'], '.1f')} | {goal} | {number(buildah, '.3f')} | {number(beside, '.1f')} |"
            f" {number(row['limit_s'], '.3f')} |"
            f" {number(None if memory is None else memory / 1e6, '.0f')} |"
        )
    return "\n".join(lines)


def name_input(row: dict[str, Any]) -> str:
    """Return what a work was done with, as titles end: the source, and the file system if it was one of its own."""
    return f"{row['source']}, on {row['file_system']}" if row["file_system"] else str(row["source"])


def number(value: float | None, form: str) -> str:
    """Format a number, or nothing for none."""
    return "" if value is None else format(value, form)


def write_result(cache: Path, result: dict[str, Any], kind: str = "build") -> Path:
    """Write a result under the time it was made."""
    directory = cache / "results"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{kind}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
