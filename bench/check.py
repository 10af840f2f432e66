"""Compare parsing, planning and checking a large Dockerfile with `docker build --check` on it: `python bench/check.py`.

Every round does each kind of work once, and who is first changes from round to round. Both sides begin with the base
image; the context holds nothing but the Dockerfile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peer import Docker, PeerError
from report import describe_machine
from subject import environment, find_command

from pylayers.build.plan import make_plan
from pylayers.dockerfile.parse import parse
from pylayers.engine import Engine

GOAL_RATIO = 10.0
STAGES = 100
INSTRUCTIONS_PER_STAGE = 10
BASE = "pylayers-bench-check"
BASE_FILE = "FROM scratch\nENV PATH=/bin\n"
STAGE = """FROM {base} AS stage{number}
ARG TARGETARCH
ENV APP_{number}=value{number} HOME=/root
WORKDIR /src/{number}
RUN --mount=type=cache,target=/root/.cache apt-get update && \\
    apt-get install -y --no-install-recommends gcc
COPY --chown=1000:1000 go.mod go.sum ./
LABEL version=${{APP_{number}}} arch=$TARGETARCH
USER 1000
EXPOSE {port}
CMD ["app", "--flag"]
"""
TITLES = {
    "plan": "parse and plan, library call",
    "check": "check, library call",
    "process": "check, process",
    "docker": "docker build --check, process",
    "docker_limit": "docker version, process",
    "own_limit": "pylayers version, process",
}


def make_dockerfile() -> str:
    """Return a file of 100 stages, each on the one before it or on the base by turns, with ten instructions each."""
    texts = [
        STAGE.format(base=f"stage{number - 1}" if number % 4 else BASE, number=number, port=8000 + number)
        for number in range(STAGES)
    ]
    return "".join(texts)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run_process(*words: str) -> None:
    """Run pylayers' command. Raises CalledProcessError."""
    command = (*find_command(), *words)
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare both sides, run the rounds and return every sample."""
    directory = options.cache.absolute() / "check"
    shutil.rmtree(directory, ignore_errors=True)
    context, base = directory / "context", directory / "base"
    for place, text in ((context, make_dockerfile()), (base, BASE_FILE)):
        place.mkdir(parents=True)
        (place / "Dockerfile").write_text(text)
    root = str(directory / "root")
    content = (context / "Dockerfile").read_bytes()
    samples: dict[str, list[float]] = {name: [] for name in TITLES}
    with ExitStack() as stack:
        docker = None
        if options.docker:
            inside = options.docker_root and options.docker_root.absolute()
            docker = stack.enter_context(Docker(directory / "docker", inside, {}, directory))
            docker.call("build", "--quiet", "-t", BASE, str(docker.inside(base)))
        engine = stack.enter_context(Engine.open(root))
        engine.build(base, references=(BASE,))
        own: dict[str, Callable[[], object]] = {
            "plan": lambda: make_plan(parse(content), {}, None),
            "check": lambda: engine.check(context),
            "process": lambda: run_process("--root", root, "build", "--check", str(context)),
            "own_limit": lambda: run_process("version"),
        }
        theirs: dict[str, Callable[[], object]] = {}
        if docker is not None:
            inside_context = str(docker.inside(context))
            theirs["docker"] = lambda: docker.call("build", "--check", inside_context)
            theirs["docker_limit"] = lambda: docker.call("version")
        if not engine.check(context).passed:
            raise PeerError(f"the check finds something: {engine.check(context)}")
        for number in range(-1, options.rounds):  # the first round is not counted
            for name, work in [*own.items(), *theirs.items()] if number % 2 else [*theirs.items(), *own.items()]:
                seconds = timed(work)
                if number >= 0:
                    samples[name].append(seconds)
        versions = None if docker is None else docker.versions()
    medians = {name: statistics.median(found) for name, found in samples.items() if found}
    return {
        "machine": {**describe_machine(options.cache), "load_average_at_end": os.getloadavg()},
        "docker": versions,
        "instructions": STAGES * INSTRUCTIONS_PER_STAGE,
        "stages": STAGES,
        "medians_s": medians,
        "ratios": {
            name: medians["docker"] / medians[name] for name in ("plan", "check", "process") if "docker" in medians
        },
        "goal": GOAL_RATIO,
        "samples_s": samples,
    }


def show(result: dict[str, Any]) -> None:
    """Print a result for people."""
    print("| work | median s | docker's time over it |\n| --- | ---: | ---: |")
    for name, seconds in result["medians_s"].items():
        ratio = result["ratios"].get(name)
        print(f"| {TITLES[name]} | {seconds:.4f} | {'' if ratio is None else format(ratio, '.1f')} |")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare checking a Dockerfile by pylayers and by docker.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="pylayers alone")
    parser.add_argument("--docker-root", type=Path, help="a Debian root that dockerd and docker are run from")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("PYLAYERS_BENCH_CACHE", ".bench")))
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


def main() -> int:
    """Run the comparison; the exit status tells whether it could be made."""
    options = read_options()
    options.cache.mkdir(parents=True, exist_ok=True)
    try:
        result = measure(options)
    except (PeerError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(result)
    directory = options.cache / "results"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"check-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nwritten to {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
