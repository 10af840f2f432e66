"""Both engines, started once; and the line that tells with which BuildKit pylayers was compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.buildkit.base import make_base
from tests.interop.buildkit.case import Case
from tests.interop.buildkit.daemon import Daemon, DaemonMissing
from tests.interop.buildkit.docker import DockerBuilder
from tests.interop.buildkit.observe import Observation
from tests.interop.buildkit.own import OwnBuilder
from tests.interop.buildkit.record import fingerprint, read_recorded
from tests.interop.buildkit.server import Servers

compared_with: list[str] = []


@dataclass
class Engines:
    """Build a case with either engine; BuildKit's answer is the recorded one where no dockerd can start."""

    directory: Path
    servers: Servers
    base: Path
    own: OwnBuilder
    docker: DockerBuilder | None
    recorded: dict[str, Any]
    fresh_count: int = 0

    def build(self, case: Case, *, fresh: bool = False) -> Observation:
        """Build with pylayers: in the data root that the cases share, or in one that nobody has used."""
        builder = self.own
        if fresh:
            self.fresh_count += 1
            place = self.directory / f"fresh-{self.fresh_count}"
            builder = OwnBuilder(place, self.servers, self.directory, self.base)
        return dict(json.loads(json.dumps(builder.run(case))))

    def expect(self, case: Case) -> Observation:
        """Return what BuildKit makes of a case."""
        if self.docker is not None:
            return dict(json.loads(json.dumps(self.docker.run(case))))
        found = dict(self.recorded.get(case.name) or {})
        if found.pop("fingerprint", None) != fingerprint(case):
            pytest.fail(f"{case.name} isn't recorded as it is: python -m tests.interop.buildkit.record {case.name}")
        return found


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Start what the cases need."""
    directory = tmp_path_factory.mktemp("buildkit")
    versions, recorded = read_recorded()
    base = make_base(directory)
    with Servers(directory) as servers:
        own = OwnBuilder(directory, servers, directory, base)
        daemon = Daemon(directory)
        try:
            daemon.start()
        except DaemonMissing as error:
            compared_with.append(
                f"with the RECORDED answers of docker {versions['docker']}, because no dockerd can start here: {error}"
            )
            yield Engines(directory, servers, base, own, None, recorded)
            return
        try:
            compared_with.append(f"with the dockerd of this machine: {daemon.versions()['docker']}")
            docker = DockerBuilder(daemon, servers, directory, base)
            yield Engines(directory, servers, base, own, docker, recorded)
        finally:
            daemon.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell what pylayers was compared with."""
    for line in compared_with:
        terminalreporter.write_line(f"BuildKit's cases were compared {line}")
