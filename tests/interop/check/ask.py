"""Ask docker and pylayers the same question: what does `build --check` say?"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from pylayers.cli.failure import run as run_command
from tests.interop.buildkit.daemon import Daemon
from tests.interop.check.case import IMAGES, Case

ERROR = re.compile(r"^ERROR: .*", re.MULTILINE | re.DOTALL)


class Answer(TypedDict):
    """The exit code, what was found as printed, and the error."""

    exit: int
    found: str
    error: str


class Docker:
    """Ask docker, in the suite's own daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.directory = daemon.shared / "check"
        for name, text in IMAGES.items():
            directory = self.directory / "image" / name
            directory.mkdir(parents=True)
            (directory / "Dockerfile").write_text(text)
            daemon.expect("build", "--quiet", "-t", name, daemon.inside(directory))

    def ask(self, case: Case) -> Answer:
        """Return docker's answer, with the context's path taken out."""
        directory = self.directory / case.key
        case.write(directory)
        inside = self.daemon.inside(directory)
        done = self.daemon.call("build", "--check", *case.options, inside)
        error = ERROR.search(done.stderr)
        return {
            "exit": done.returncode,
            "found": done.stdout.replace(f"{inside}/", ""),
            "error": error[0].rstrip("\n").replace(f"{inside}/", "") if error else "",
        }


class Own:
    """Ask pylayers' command line, in this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name, text in IMAGES.items():
            place = directory / "image" / name
            place.mkdir(parents=True)
            (place / "Dockerfile").write_text(text)
            code, _, told = self._run("build", "-t", name, str(place))
            if code:
                raise RuntimeError(f"cannot build {name}: {told}")

    def ask(self, case: Case) -> Answer:
        """Return pylayers' answer, with the context's path taken out."""
        directory = self.directory / case.key
        case.write(directory)
        code, out, told = self._run("build", "--check", *case.options, str(directory))
        return {"exit": code, "found": out.replace(f"{directory}/", ""), "error": told.replace(f"{directory}/", "")}

    def _run(self, *words: str) -> tuple[int, str, str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with bare_environment(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(["--root", str(self.directory / "root"), *words])
        return code, read_back(out), read_back(err).rstrip("\n")


def read_back(stream: io.TextIOWrapper) -> str:
    """Return what was written."""
    stream.flush()
    stream.seek(0)
    return stream.read()


@contextlib.contextmanager
def bare_environment() -> Iterator[None]:
    """Leave out what changes a build."""
    kept = dict(os.environ)
    for name in ("SOURCE_DATE_EPOCH", "PYLAYERS_DRIVER", "PYLAYERS_ROOT"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
