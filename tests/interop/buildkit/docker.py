"""Build cases with the daemon."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.interop.buildkit.builder import BASE, TAG, Builder
from tests.interop.buildkit.case import Case, Section
from tests.interop.buildkit.daemon import Daemon
from tests.interop.buildkit.observe import Observation, observe_config, read_step
from tests.interop.buildkit.server import Servers
from tests.interop.buildkit.tree import read_tree

ERROR = re.compile(r"^ERROR: (?:failed to build: )?(?:failed to solve: )?(.*)", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"^\S*Dockerfile\S*:(\d+)$", re.MULTILINE)
VERTEX = re.compile(r"^#(\d+) (\[.*)$", re.MULTILINE)
CACHED = re.compile(r"^#(\d+) CACHED$", re.MULTILINE)


def first_line(location: dict[str, Any]) -> int:
    """Return where a warning begins, 0 where docker names no place."""
    ranges = location.get("ranges")
    return ranges[0]["start"]["line"] if ranges else 0


class DockerBuilder(Builder):
    """Build with BuildKit in the suite's daemon."""

    def __init__(self, daemon: Daemon, servers: Servers, served: Path, base_tar: Path) -> None:
        super().__init__(daemon.shared / "case", servers, served, time.time_ns())
        self.daemon = daemon
        daemon.expect("import", "-", BASE, stdin=base_tar)
        with self._tree(BASE) as root:
            self.base_tree = read_tree(root, self.started_ns)

    def seen(self, path: Path) -> str:
        """Return a path as the daemon sees it."""
        return self.daemon.inside(path)

    def _build(
        self, case: Case, tag: str, options: list[str], environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        network = [] if any(option.startswith("--network") for option in options) else ["--network=host"]
        context = self.seen(self.directory / case.name / "context")
        return self.daemon.call(
            "build", "--progress=plain", "-t", tag, *network, *options, context, environment=environment
        )

    def build_image(self, case: Case, image: Section, options: list[str]) -> None:
        """Build an image that a case needs."""
        dockerfile = self.seen(self.directory / case.name / "aside" / f"{image.name}.Dockerfile")
        done = self._build(case, image.name, ["--no-cache", "-f", dockerfile, *options], {})
        if done.returncode:
            raise RuntimeError(f"{case.name}: docker cannot build {image.name}: {done.stderr[-2000:]}")

    def observe(self, case: Case, options: list[str], caching: bool) -> Observation:
        """Build and return what came of it."""
        if case.check:
            return self._check(case, options)
        fresh = [] if caching and case.again is not None and self._built(case) else ["--no-cache"]
        done = self._build(case, TAG, [*fresh, *options], case.environment)
        told = done.stderr.replace(self.seen(self.directory / case.name), "{directory}")
        if done.returncode:
            error, place = ERROR.search(told), PLACE.search(told)
            message = error[1].strip() if error else told[-500:]
            return {"refused": {"message": message, "line": int(place[1]) if place else None}}
        written = self.read_output(case)
        if written is not None:
            return written
        observed = self._image(TAG)
        if caching:
            observed["cached"] = self._cached(done.stderr)
        return observed

    def _built(self, case: Case) -> bool:
        mark = self.directory / case.name / "built"
        if mark.exists():
            return True
        mark.touch()
        return False

    def _check(self, case: Case, options: list[str]) -> Observation:
        context = self.seen(self.directory / case.name / "context")
        done = self.daemon.call("build", "--call=check,format=json", *options, context)
        if not done.stdout.startswith("{"):
            return {"refused": {"message": done.stderr.strip().splitlines()[-1], "line": None}}
        told = json.loads(done.stdout)
        return {
            "warnings": sorted(
                [one["ruleName"], first_line(one["location"]), one["detail"]]
                for one in told["warnings"] or []
            ),
            "error": (told.get("buildError") or {}).get("message", ""),
        }  # fmt: skip

    def _image(self, reference: str) -> Observation:
        (found,) = json.loads(self.daemon.expect("image", "inspect", reference))
        digest = str(found["Id"]).removeprefix("sha256:")
        stored = self.daemon.shared / "data" / "image" / "overlay2" / "imagedb" / "content" / "sha256" / digest
        document = json.loads(stored.read_bytes())
        imported = sum("Imported from" in step.get("comment", "") for step in document.get("history") or [])
        with self._tree(reference) as root:
            return {**self.compare(root), **observe_config(document, imported)}

    @contextmanager
    def _tree(self, reference: str) -> Iterator[Path]:
        """Mount an image's layers: what docker save writes lacks most xattrs and rounds times."""
        (found,) = json.loads(self.daemon.expect("image", "inspect", reference))
        data = (found.get("GraphDriver") or {}).get("Data") or {}
        directories = [data["UpperDir"]] if data.get("UpperDir") else []
        directories += filter(None, data.get("LowerDir", "").split(":"))
        layers = [str(self.daemon.outside(directory)) for directory in directories]
        with tempfile.TemporaryDirectory(dir=self.daemon.shared) as name:
            root, empty = Path(name) / "root", Path(name) / "empty"
            root.mkdir()
            empty.mkdir()
            if not layers:
                yield empty
                return
            options = f"ro,lowerdir={':'.join([*layers, str(empty)])}"
            subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(root)], check=True)
            try:
                yield root
            finally:
                subprocess.run(["umount", str(root)], check=True)

    def _cached(self, told: str) -> list[list[object]]:
        hits = set(CACHED.findall(told))
        steps = [(read_step(label), number in hits) for number, label in VERTEX.findall(told)]
        return sorted([*step, hit] for step, hit in dict(steps).items() if step is not None)
