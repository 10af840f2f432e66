"""Everything from one command: `python bench`; `python bench history` shows how a work's times moved.

Each group of works is a script of its own, run one after another; here their results become one table, one JSON file
and one picture under the cache's results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH.parent), str(BENCH)]

from container import LIBRARY_GOAL_S, OWN_BUNDLE  # noqa: E402
from disk import missing_tool  # noqa: E402
from failure import FAILED  # noqa: E402
from report import (  # noqa: E402
    MEMORY_GOAL_BYTES,
    REFLINK_GOALS,
    REFLINK_SYSTEMS,
    describe_machine,
    name_input,
)
from table import MemoryRow, Row, draw, is_memory, render_rows  # noqa: E402

GROUPS = ("build", "reflink", "container", "copy_up", "kernel", "growth", "read_way", "start")
QUICK_GROUPS = ("build", "reflink", "kernel", "growth", "read_way", "start")
DOCKER_GROUPS = ("build", "reflink", "container", "copy_up", "kernel")
WORSE = {"s": "slower", "MB": "larger"}
SLOWER = 1.25  # than the best before, on the same machine: marked in the history
RESULT_NAMES = {"copy_up": "copy-up"}
# Issue 5's goals: at least as many times faster than docker; at most as many times the limit.
BUILD_GOALS = {
    ("cold", "ml"): 30.0, ("cold", "nm"): 30.0, ("cold", "big"): 15.0,
    ("changed", "ml"): 20.0, ("changed", "nm"): 20.0, ("changed", "big"): 20.0,
    ("unchanged", "ml"): 15.0, ("library", "ml"): 25.0,
}  # fmt: skip
BUILDAH_GOAL = 30.0
BUILD_TITLES = {
    "cold": "cold build", "changed": "rebuild, one file changed", "first": "rebuild, the first file changed",
    "unchanged": "rebuild, nothing changed, process", "library": "rebuild, nothing changed, call",
}  # fmt: skip
AnyRow = Row | MemoryRow
BUILD_LIMIT_GOALS = {"cold": 1.3, "changed": 1.5, "first": 1.5, "unchanged": 1.5, "library": 1.5}
CONTAINER_TITLES = {
    "load": "archive to first container", "unpack": "archive to first container", "run": "run true, process",
    "library": "run true, call", "commit": "commit of one file", "commit_large": "commit of 1 GiB",
}  # fmt: skip
COMMIT_LIMIT_GOAL = 1.5  # of sha256 of the tar


def read_build(result: dict[str, Any]) -> Iterator[AnyRow]:
    """Give the rows of bench/build.py; the limits are issue 5's."""
    for work in result["works"]:
        limits = result["limits"][work["source"]]
        limit = {
            "cold": max(limits["sha256_s"], limits["read_s"] + limits["write_s"]),
            "changed": limits["sha256_s"],
            "first": limits["sha256_s"],
        }.get(work["work"], limits["stat_s"])
        kind, source = work["work"], work["source"]
        title = f"{BUILD_TITLES[kind]}: {name_input(work)}"
        goals = REFLINK_GOALS if work["file_system"] in REFLINK_SYSTEMS else BUILD_GOALS
        yield Row(
            title, work["pylayers_s"], "docker" if work["docker_s"] else None, work["docker_s"],
            goals.get((kind, source)), limit, BUILD_LIMIT_GOALS[kind],
        )  # fmt: skip
        if work["buildah_s"]:
            yield Row(
                title, work["pylayers_s"], "buildah bud", work["buildah_s"], BUILDAH_GOAL, limit,
                BUILD_LIMIT_GOALS[kind],
            )  # fmt: skip
        if work["rss_anon_peak_bytes"]:
            yield MemoryRow(title, work["rss_anon_peak_bytes"], MEMORY_GOAL_BYTES)


def read_container(result: dict[str, Any]) -> Iterator[AnyRow]:
    """Give the rows of bench/container.py."""
    for work in result["works"]:
        kind, peer = work["work"], work["peer"]
        goal = work["goal"] if isinstance(work["goal"], int | float) else None
        limit, limit_goal = work["limit_s"], COMMIT_LIMIT_GOAL if kind in ("commit", "commit_large") else None
        if kind == "library" and peer == OWN_BUNDLE:  # may be above the runtime alone by so much: that is the limit
            limit, limit_goal = work["peer_s"] + LIBRARY_GOAL_S, 1.0
        yield Row(CONTAINER_TITLES[kind], work["pylayers_s"], peer, work["peer_s"], goal, limit, limit_goal)


def read_copies(result: dict[str, Any]) -> Iterator[AnyRow]:
    """Give the rows of bench/copy_up.py."""
    for work in result["works"]:
        title = f"copy-up, {work['work']}, {work['file_system']}"
        yield Row(title, work["pylayers_s"], work["peer"], work["peer_s"], work["goal"], work["limit_s"], None)


@dataclass(frozen=True, slots=True)
class Script:
    """One script to run, and how its result's name begins."""

    command: list[str]
    result_name: str


READERS: dict[str, Callable[[dict[str, Any]], Iterator[AnyRow]]] = {
    "build": read_build, "reflink": read_build, "container": read_container, "copy_up": read_copies,
}  # fmt: skip


def plan_group(group: str, options: argparse.Namespace) -> tuple[list[Script], list[str]]:
    """Return the scripts of a group, and a note for each that can't be run here."""
    if group != "reflink":
        return [Script(command_of(group, options), RESULT_NAMES.get(group, group))], []
    scripts, notes = [], []
    for kind in REFLINK_SYSTEMS:
        if missing := missing_tool(kind):
            notes.append(f"builds on {kind}: {missing} is not installed")
            continue
        given = ["--source", "big", "--file-system", kind]
        scripts.append(Script([*command_of("build", options), *given], f"build-{kind}"))
    return scripts, notes


def command_of(group: str, options: argparse.Namespace) -> list[str]:
    """Return the command line of a group's script."""
    command = [sys.executable, str(BENCH / f"{group}.py"), "--cache", str(options.cache)]
    if group != "growth":
        command += ["--rounds", str(options.rounds)]
    if options.quick:
        return [*command, "--quick"]
    if group in ("build", "container", "kernel") and not options.docker:
        command.append("--no-docker")
    if group == "build" and not options.buildah:
        command.append("--no-buildah")
    if options.docker_root is not None and group in DOCKER_GROUPS:
        command += ["--docker-root", str(options.docker_root)]
    if group == "copy_up" and not options.docker:
        command += ["--work", "file,tree"]
    return command


def run_group(group: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Run a group's scripts and return their rows and notes; a failure is a note."""
    rows: list[dict[str, Any]] = []
    scripts, notes = plan_group(group, options)
    for script in scripts:
        print(f"== {group}: {script.result_name}", file=sys.stderr, flush=True)
        found, told = run_script(group, script, options.cache / "results")
        rows += found
        notes += told
    return rows, notes


def run_script(group: str, script: Script, results: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Run one script and return the rows and notes of its result."""
    before = set(results.glob("*.json")) if results.exists() else set()
    code = subprocess.run(script.command, stdout=subprocess.DEVNULL).returncode
    named = results.glob(f"{script.result_name}-*.json") if results.exists() else ()
    made = sorted(path for path in named if path not in before)
    if not made:
        return [], [f"{script.result_name}: its script left with {code} and no result"]
    result = json.loads(made[-1].read_text())
    notes = list(result.get("notes", ()))
    if code:
        notes.append(f"{script.result_name}: its script left with {code}")
    if group in READERS:
        return [row.describe() for row in READERS[group](result)], notes
    return result["rows"], notes


def run_all(options: argparse.Namespace) -> int:
    """Run the groups, write the whole and print it."""
    machine = describe_machine(options.cache)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for group in options.only:
        found, told = run_group(group, options)
        rows += found
        notes += told
    if not rows:
        print("error: nothing was measured:\n" + "\n".join(notes), file=sys.stderr)
        return 1
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    place = options.cache / "results"
    whole = {"machine": machine, "rounds": options.rounds, "quick": options.quick, "rows": rows, "notes": notes}
    text = render_rows(rows) + "".join(f"\n\n{note}" for note in notes) + "\n"
    title = f"pylayers {machine['commit']}, {machine['cpu']}, {machine['cores']} cores"
    (place / f"all-{stamp}.json").write_text(json.dumps(whole, indent=2) + "\n")
    (place / f"all-{stamp}.md").write_text(text)
    (place / f"all-{stamp}.svg").write_text(draw(rows, title))
    print(text)
    print(f"written to {place}/all-{stamp}.json, .md and .svg", file=sys.stderr)
    return 1 if any("no result" in note or note.startswith(FAILED) for note in notes) else 0


def read_history(cache: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the whole results of the cache, oldest first, with the time in their name."""
    found = sorted((cache / "results").glob("all-*.json"))
    return [(path.stem.removeprefix("all-"), json.loads(path.read_text())) for path in found]


def show_history(cache: Path) -> int:
    """Print every work's medians over time; a slowdown against the best before is marked."""
    results = read_history(cache)
    if not results:
        print(f"error: there is no result in {cache / 'results'}; run: python bench", file=sys.stderr)
        return 1
    print("\n".join(render_history(results)))
    return 0


def render_history(results: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Write one line for each work, peer and machine: the medians, oldest first, with the ratio to the peer.

    One work has a row for each of its peers, measured together or not: none stands for the others.
    """
    series: dict[tuple[str, str, str, str], list[tuple[str, str, dict[str, Any]]]] = {}
    for stamp, result in results:
        about = result["machine"]
        machine = f"{about['cpu']}, {about['cores']} cores{', quick' if result['quick'] else ''}"
        for row in result["rows"]:
            unit = "MB" if is_memory(row) else "s"
            taken = series.setdefault((machine, row["work"], row.get("peer") or "", unit), [])
            taken.append((stamp, str(about["commit"]), row))
    lines = ["| work | peer | machine | medians, oldest first |", "| --- | --- | --- | --- |"]
    for (machine, work, peer, unit), taken in sorted(series.items()):
        cells, best = [], float("inf")
        for stamp, commit, row in taken:
            value = float(row["pylayers_mb" if unit == "MB" else "pylayers_s"])
            mark = f" **{WORSE[unit]}: {value / best:.2f} of the best**" if value > best * SLOWER else ""
            beside = f", peer / pylayers {row['ratio']:.3g}" if peer and row["ratio"] else ""
            cells.append(f"{value:.4g} {unit} ({commit}, {stamp[:8]}{beside}){mark}")
            best = min(best, value)
        lines.append(f"| {work} | {peer} | {machine} | {'; '.join(cells)} |")
    return lines


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python bench", description="Measure pylayers beside its peers.")
    parser.add_argument("what", nargs="?", choices=("run", "history"), default="run")
    parser.add_argument("--only", default="", help=f"only these groups, comma-separated: {','.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small inputs, no docker: whether all of it works")
    parser.add_argument("--no-docker", dest="docker", action="store_false")
    parser.add_argument("--no-buildah", dest="buildah", action="store_false")
    parser.add_argument("--docker-root", type=Path, help="a Debian root that the peers are run from")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    options.cache = options.cache.absolute()
    if options.what == "history":
        return show_history(options.cache)
    chosen = QUICK_GROUPS if options.quick else GROUPS
    options.only = tuple(options.only.split(",")) if options.only else chosen
    if set(options.only) - set(GROUPS) or options.rounds < 1:
        parser.error(f"--only names groups of {', '.join(GROUPS)}, and --rounds is at least 1")
    options.cache.mkdir(parents=True, exist_ok=True)
    return run_all(options)


if __name__ == "__main__":
    sys.exit(main())
