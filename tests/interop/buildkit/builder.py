"""What both builders share: a folder for each case, and the words of its options."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

from tests.interop.buildkit.case import Case, Section
from tests.interop.buildkit.context import change_context, make_context
from tests.interop.buildkit.observe import Observation, replace_all
from tests.interop.buildkit.server import Servers
from tests.interop.buildkit.tree import Tree, compare_with_base, read_tree

PLACE = re.compile(r"(?<!\$)\{(context|aside|out|http|git|case)\}")
BASE = "base"
TAG = "result"
TO_CLIENT = re.compile(r"type=(local|tar|oci|docker)")


class Builder:
    """Build cases; a subclass knows how its engine is called."""

    def __init__(self, directory: Path, servers: Servers, served: Path, started_ns: int) -> None:
        self.directory = directory
        self.servers = servers
        self._served = served
        self.started_ns = started_ns
        self.base_tree: Tree = {}

    def seen(self, path: Path) -> str:
        """Return a path as the engine sees it."""
        return str(path)

    def places(self, case: Case) -> dict[str, str]:
        """Return what {names} stand for."""
        directory = self.directory / case.name
        below = (directory / "aside").relative_to(self._served)
        return {
            **{name: self.seen(directory / name) for name in ("context", "aside", "out")},
            "http": f"{self.servers.http}/{below}",
            "git": f"{self.servers.git}/{below}",
            "case": case.name,
        }

    def run(self, case: Case) -> Observation:
        """Make a case's files, build it, and return what came of it."""
        directory, places = self.directory / case.name, self.places(case)

        def fill(text: str) -> str:
            return PLACE.sub(lambda match: places[match[1]], text)

        shutil.rmtree(directory, ignore_errors=True)  # the other engine's, or an earlier build's
        make_context(case, directory, fill)
        try:
            for image in case.images():
                (directory / "aside" / f"{image.name}.Dockerfile").write_text(fill(image.text))
                self.build_image(case, image, fill(image.attributes.get("options", "")).split())
            observed = self.observe(case, [fill(option) for option in case.options], case.again is not None)
            if case.again is not None:
                change_context(case, directory, fill)
                observed = self.observe(case, [fill(option) for option in case.again], True)
        finally:
            shutil.rmtree(directory / "context")

        def hide(text: str) -> str:
            for name in ("http", "git", "context", "aside", "out"):
                text = text.replace(places[name], "{" + name + "}")
            return text

        return dict(replace_all(observed, hide))

    def observe(self, case: Case, options: list[str], caching: bool) -> Observation:
        """Build and return what came of it."""
        raise NotImplementedError

    def build_image(self, case: Case, image: Section, options: list[str]) -> None:
        """Build an image that a case needs. Raises RuntimeError."""
        raise NotImplementedError

    def read_output(self, case: Case) -> Observation | None:
        """Return what --output wrote, or None when a case has no such option."""
        if not any(TO_CLIENT.search(option) for option in case.options):
            return None
        out = self.directory / case.name / "out"
        for path in sorted(out.glob("*.tar")):
            with tarfile.open(path) as tar:
                tar.extractall(out / path.stem, filter="fully_trusted")
            path.unlink()
        tree = read_tree(out, self.started_ns)
        for name in ("/", *(f"/{path.stem}" for path in out.glob("*.tar"))):
            tree.get(name, {}).pop("mtime", None)  # made by this suite
        return {"output": tree}

    def compare(self, root: Path) -> Observation:
        """Return what a built tree has other than the base."""
        return compare_with_base(read_tree(root, self.started_ns), self.base_tree)
