"""Build cases with pylayers' own command line, in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pylayers.cli.failure import run as run_command
from pylayers.engine import Engine
from pylayers.image.unpack import unpack_layers
from pylayers.snapshot.mount import mounted
from tests.interop.buildkit.builder import BASE, TAG, Builder
from tests.interop.buildkit.case import Case, Section
from tests.interop.buildkit.observe import Observation, observe_config, read_step
from tests.interop.buildkit.server import Servers
from tests.interop.buildkit.tree import read_tree

ERROR = re.compile(r"^pylayers: error: (.*)", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"Dockerfile\S*?:(\d+)")


class OwnBuilder(Builder):
    """Build with pylayers, all cases in one data root, so that a cache key that is too short is found."""

    def __init__(self, directory: Path, servers: Servers, served: Path, base_tar: Path) -> None:
        super().__init__(directory / "case", servers, served, time.time_ns())
        self.root = directory / "root"
        with Engine.open(self.root) as engine:
            engine.images.import_(base_tar, BASE)
        with self._tree(BASE) as root:
            self.base_tree = read_tree(root, self.started_ns)

    def build_image(self, case: Case, image: Section, options: list[str]) -> None:
        """Build an image that a case needs."""
        dockerfile = self.directory / case.name / "aside" / f"{image.name}.Dockerfile"
        code, _, told = self._build(case, ["-f", str(dockerfile), "-t", image.name, *options], {})
        if code:
            raise RuntimeError(f"{case.name}: pylayers cannot build {image.name}: {told[-2000:]}")

    def _build(self, case: Case, options: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
        # BuildKit's own: crun adds /dev/core to what a step sees.
        words = ["--root", str(self.root), "--runtime", "runc", "build", "--progress=plain", *options]
        return run([*words, str(self.directory / case.name / "context")], environment)

    def observe(self, case: Case, options: list[str], caching: bool) -> Observation:
        """Build and return what came of it."""
        metadata = self.directory / case.name / "metadata"
        added = ["--cache-key=chain", f"--metadata-file={metadata}"] if caching else []
        code, _, told = self._build(case, ["-t", TAG, *added, *options], case.environment)
        if code:
            return refusal(told)
        written = self.read_output(case)
        if written is not None:
            return written
        observed = self._image(TAG)
        if caching:
            steps = json.loads(metadata.read_text())["pylayers.steps"]
            observed["cached"] = sorted(
                ["stage-0" if step[0] == "stage" else step[0], step[1], one["status"] == "cached"]
                for one in steps
                if (step := read_step(one["step"])) is not None
            )
        return observed

    def _image(self, reference: str) -> Observation:
        with Engine.open(self.root) as engine:
            document = engine.images.get(reference).config.to_document()
        with self._tree(reference) as root:
            imported = 1 if document.get("history") and is_import(document) else 0
            return {**self.compare(root), **observe_config(document, imported)}

    @contextlib.contextmanager
    def _tree(self, reference: str) -> Iterator[Path]:
        with Engine.open(self.root) as engine:
            image, driver = engine.images.get(reference), engine.driver()
            name = unpack_layers(driver, image.config.diff_ids, engine.store.layers.open)
            if name is None:
                empty = self.root.with_name("empty")
                empty.mkdir(exist_ok=True)
                yield empty
                return
            key = f"interop-{time.monotonic_ns()}"
            with mounted(driver.view(key, name)) as root:
                yield root
            driver.remove(key)


def is_import(document: Mapping[str, object]) -> bool:
    """Tell whether the first step of a history is the base's import."""
    history = document["history"]
    return isinstance(history, list) and str(history[0].get("created_by", "")).startswith("import ")


def refusal(told: str) -> Observation:
    """Return why a build was refused."""
    error = ERROR.search(told)
    message = error[1].strip() if error else told[-500:]
    place = PLACE.search(message)
    return {"refused": {"message": message, "line": int(place[1]) if place else None}}


def run(words: list[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run a command line in this process; return its exit code and what it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    kept = dict(os.environ)
    for name in ("SOURCE_DATE_EPOCH", "PYLAYERS_DRIVER", "PYLAYERS_ROOT"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(words)
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return code, *(stream.buffer.getvalue().decode(errors="replace") for stream in (out, err))  # type: ignore[attr-defined]
