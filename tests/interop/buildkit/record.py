"""Build the cases with docker and keep what came of them, for machines where no dockerd can start.

    PYLAYERS_DOCKER_ROOT=ROOT python -m tests.interop.buildkit.record [TOPIC | CASE …]
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.interop.buildkit.base import make_base
from tests.interop.buildkit.case import Case, read_cases
from tests.interop.buildkit.daemon import Daemon
from tests.interop.buildkit.docker import DockerBuilder
from tests.interop.buildkit.observe import Observation
from tests.interop.buildkit.server import Servers

DIRECTORY = Path(__file__).with_name("golden")


def fingerprint(case: Case) -> str:
    """Return a digest of all of a case but its title: a record of another text is of no use."""
    given = asdict(case)
    del given["title"], given["topic"]
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]


def read_recorded() -> tuple[dict[str, str], dict[str, Any]]:
    """Return the recording engine's versions, and each case's record: its fingerprint and its observation."""
    versions: dict[str, str] = {}
    cases: dict[str, Any] = {}
    for path in sorted(DIRECTORY.glob("*.json")):
        content = json.loads(path.read_text())
        versions = content["versions"]
        cases |= content["cases"]
    return versions, cases


def write_recorded(topic: str, versions: dict[str, str], cases: dict[str, Any]) -> None:
    """Write one topic's records, a case per line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(cases[name], sort_keys=True)}" for name in sorted(cases)]
    body = ",\n".join(lines)
    path = DIRECTORY / f"{topic}.json"
    path.write_text(f'{{"versions": {json.dumps(versions)},\n "cases": {{\n{body}\n}}}}\n')


def check_expectation(case: Case, observed: Observation) -> str | None:
    """Return what is wrong with a case by what docker did with it, or None."""
    if case.check:
        return None
    refused = observed.get("refused")
    if case.refused is None:
        return f"docker refuses it: {refused['message']}" if refused else None
    if refused is None:
        return "docker builds it"
    missing = [word for word in case.refused if word.lower() not in refused["message"].lower()]
    return f"docker's message lacks {missing}: {refused['message']}" if missing else None


def main(wanted: list[str]) -> int:
    """Record the wanted cases, or all. Cases that are gone are dropped."""
    cases = read_cases()
    chosen = [
        case
        for case in cases
        if case.labs is None and (not wanted or case.topic in wanted or case.name in wanted)
    ]
    problems = 0
    with tempfile.TemporaryDirectory(prefix="pylayers-interop-") as name:
        directory = Path(name)
        daemon = Daemon(directory)
        daemon.start()
        try:
            versions = daemon.versions()
            with Servers(directory) as servers:
                builder = DockerBuilder(daemon, servers, directory, make_base(directory))
                _, recorded = read_recorded()
                for case in chosen:
                    started = time.monotonic()
                    try:
                        observed = builder.run(case)
                    except Exception as error:
                        problems += 1
                        print(f"{case.topic}/{case.name}: {error!r}")
                        continue
                    problem = check_expectation(case, observed)
                    problems += problem is not None
                    if problem is not None:
                        print(f"{case.topic}/{case.name}: {problem}")
                    recorded[case.name] = {"fingerprint": fingerprint(case), **observed}
                    if time.monotonic() - started > 5:
                        print(f"{case.topic}/{case.name}: took {time.monotonic() - started:.1f} s")
        finally:
            daemon.close()
    for topic in {case.topic for case in cases}:
        names = {case.name for case in cases if case.topic == topic and case.labs is None}
        write_recorded(topic, versions, {name: recorded[name] for name in names if name in recorded})
    print(f"{len(chosen)} cases recorded with docker {versions['docker']}, {problems} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
