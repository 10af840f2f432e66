"""What a rebuild with nothing changed imports, and what that takes: `python bench/start.py`.

`-X importtime` is asked of the very command that users run, several times; the medians of each module's own time are
listed, the slowest first, beside those that Python imports for a program that does nothing. The row's limit is the time
that `python -c pass` takes as a process: what no program in Python can go below.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from failure import FAILURES, describe_failure, exit_status
from report import describe_machine, write_result
from subject import SubjectError, environment, find_command
from table import Row, render_rows

from pylayers.engine import Engine

FILES = 200
ROUNDS_AT_LEAST = 9
SHOWN = 25


def run_python(*arguments: str) -> tuple[float, str]:
    """Run Python, and return the seconds of the whole process and what it told. Raises SubjectError."""
    started = time.perf_counter()
    done = subprocess.run(
        (sys.executable, *arguments), env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SubjectError(f"python {' '.join(arguments)} left with {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds, done.stderr


def imported(*arguments: str) -> dict[str, float]:
    """Return the modules that a program imports, and the seconds of each without those it imports itself."""
    _, told = run_python("-X", "importtime", *arguments)
    found = {}
    for line in told.splitlines():
        if line.startswith("import time:") and line.split(":")[1].split("|")[0].strip().isdigit():
            own, _, name = line.removeprefix("import time:").split("|")
            found[name.strip()] = int(own) / 1e6
    return found


def program() -> tuple[str, ...]:
    """Return the arguments that make Python run what the installed command does."""
    command = find_command()
    return command[1:] if command[0] == sys.executable else (command[0],)


def measure(place: Path, rounds: int) -> dict[str, Any]:
    """Build a small tree, and look at the rebuild."""
    context = place / "context"
    shutil.rmtree(place, ignore_errors=True)
    context.mkdir(parents=True)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /tree\n")
    for number in range(FILES):
        (context / f"file{number}").write_bytes(b"%d" % number)
    root = place / "root"
    time.sleep(0.05)  # a file younger than the file system's clock tick is read again
    with Engine.open(root) as engine:
        engine.build(context, references=("start:1",))
    rebuild = (*program(), "--root", str(root), "build", "-q", "-t", "start:1", str(context))
    run_python(*rebuild)
    samples: dict[str, list[float]] = {"pylayers": [], "limit": []}
    modules: dict[str, list[float]] = {}
    bare = set(imported("-c", "pass"))
    for _ in range(rounds):
        samples["limit"].append(run_python("-c", "pass")[0])
        samples["pylayers"].append(run_python(*rebuild)[0])
        for name, seconds in imported(*rebuild).items():
            modules.setdefault(name, []).append(seconds)
    ours = {name: statistics.median(taken) for name, taken in modules.items() if name not in bare}
    shutil.rmtree(place)
    medians = {side: statistics.median(taken) for side, taken in samples.items()}
    row = Row("rebuild, nothing changed, 200 files, process", medians["pylayers"], None, None, None, medians["limit"],
              None, samples)  # fmt: skip
    return {"rows": [row.describe()], "modules_s": dict(sorted(ours.items(), key=lambda one: -one[1]))}


def show(result: dict[str, Any]) -> None:
    """Print a result for people."""
    modules = result["modules_s"]
    print(f"{len(modules)} modules beyond Python's own, {sum(modules.values()) * 1e3:.1f} ms by -X importtime\n")
    print("| module | own ms |\n| --- | ---: |")
    for name in list(modules)[:SHOWN]:
        print(f"| {name} | {modules[name] * 1e3:.2f} |")
    print(f"\n{', '.join(sorted(list(modules)[SHOWN:]))}\n")
    print(render_rows(result["rows"]))


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description="List what a rebuild with nothing changed imports.")
    parser.add_argument("--rounds", type=int, default=ROUNDS_AT_LEAST)
    parser.add_argument("--quick", action="store_true", help="few rounds: whether it works")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    options.cache = options.cache.absolute()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    result: dict[str, Any] = {"rows": [], "modules_s": {}, "notes": []}
    try:
        result |= measure(options.cache / "start", 2 if options.quick else max(options.rounds, ROUNDS_AT_LEAST))
        modules = result["modules_s"]
        listed = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in list(modules.items())[:8])
        result["notes"].append(
            f"imports of a rebuild with nothing changed: {len(modules)} modules beyond Python's own,"
            f" {sum(modules.values()) * 1e3:.1f} ms; in ms {listed}"
        )
        show(result)
    except FAILURES as error:
        result["notes"].append(describe_failure("start", error))
    result["machine"] = describe_machine(options.cache)
    path = write_result(options.cache, result, "start")
    print(f"\n{result['notes'][-1]}\n\nwritten to {path}", file=sys.stderr)
    return exit_status(result["notes"])


if __name__ == "__main__":
    sys.exit(main())
