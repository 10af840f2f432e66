"""Ask docker every case and keep its answers, for machines where no dockerd can start.

    PYLAYERS_DOCKER_ROOT=ROOT python -m tests.interop.check.record [TOPIC | TOPIC/CASE …]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.interop.buildkit.daemon import Daemon
from tests.interop.check.ask import Docker
from tests.interop.check.case import read_cases

DIRECTORY = Path(__file__).with_name("golden")


def read_recorded() -> tuple[dict[str, str], dict[str, Any]]:
    """Return the recording engine's versions, and the answers by case."""
    versions: dict[str, str] = {}
    answers: dict[str, Any] = {}
    for path in sorted(DIRECTORY.glob("*.json")):
        content = json.loads(path.read_text())
        versions = content["versions"]
        answers |= {f"{path.stem}/{name}": answer for name, answer in content["answers"].items()}
    return versions, answers


def write_recorded(topic: str, versions: dict[str, str], answers: dict[str, Any]) -> None:
    """Write one topic's answers, a case per line."""
    body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(answers[name], sort_keys=True)}" for name in sorted(answers))
    DIRECTORY.mkdir(exist_ok=True)
    text = f'{{"versions": {json.dumps(versions)},\n "answers": {{\n{body}\n}}}}\n'
    (DIRECTORY / f"{topic}.json").write_text(text)


def main(wanted: list[str]) -> int:
    """Record the wanted cases, or all. Cases that are gone are dropped."""
    cases = read_cases()
    chosen = [case for case in cases if not wanted or case.topic in wanted or case.key in wanted]
    _, recorded = read_recorded()
    with tempfile.TemporaryDirectory(prefix="pylayers-check-") as name:
        daemon = Daemon(Path(name))
        daemon.start()
        try:
            versions = daemon.versions()
            docker = Docker(daemon)
            for case in chosen:
                recorded[case.key] = {"fingerprint": case.fingerprint, **docker.ask(case)}
        finally:
            daemon.close()
    for topic in {case.topic for case in cases}:
        names = [case.name for case in cases if case.topic == topic and case.key in recorded]
        write_recorded(topic, versions, {name: recorded[f"{topic}/{name}"] for name in names})
    print(f"{len(chosen)} cases recorded with docker {versions['docker']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
