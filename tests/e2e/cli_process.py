"""Run the real command line in its own process, on its own root."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 60
# What a command that is over in milliseconds must not load, top packages and modules alike.
HEAVY = {
    "numpy", "rich", "click", "httpx", "zstandard", "isal",
    # hashlib, ssl: OpenSSL's library is loaded with them; the rest takes milliseconds each.
    "hashlib", "_hashlib", "ssl", "_ssl", "asyncio", "concurrent", "subprocess", "socket", "tempfile", "shutil",
    "dataclasses", "inspect", "argparse", "logging", "random", "http", "email", "tarfile", "typing", "datetime",
    "sqlite3",
}  # fmt: skip

# What `run` and `commit` go without as well (docs/decisions/0019): these take a seventh of their time.
WORDY = {"pathlib", "fnmatch", "urllib", "ipaddress", "ntpath", "re", "enum", "json", "signal", "string"}


def heavy(modules: set[str], more: set[str] = frozenset()) -> set[str]:
    """Return those of the modules that belong to a heavy package."""
    return {name for name in modules if name.split(".")[0] in HEAVY | more}


# Says which modules a command line has loaded when a container's monitor is begun, and when that is told the spec:
# until then it waits for us, and for what we import. The drivers' modules are among these, unlike in -X importtime.
WATCH_MONITOR = """
import sys
there = set(sys.modules)
from pylayers.container.ahead import Ahead
for name in ("begin", "tell"):
    def called(*given, name=name, real=getattr(Ahead, name)):
        print(name, *(sys.modules.keys() - there), file=sys.stderr)
        real(*given)
    setattr(Ahead, name, called)
from pylayers.cli import main
main()
"""


class Cli:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYLAYERS", "SOURCE_DATE"))},
            "PYTHONPATH": str(CHECKOUT),
            "TERM": "xterm",
        }

    def command(
        self, *arguments: str, python: tuple[str, ...] = (), program: tuple[str, ...] = ("-m", "pylayers.cli")
    ) -> list[str]:
        return [sys.executable, *python, *program, "--root", str(self.root), *arguments]

    def __call__(
        self, *arguments: str, code: int = 0, input: bytes = b"", **given: tuple[str, ...]
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line, and check that it leaves with this code and never with a traceback."""
        done = subprocess.run(
            self.command(*arguments, **given), input=input, capture_output=True, cwd=self.directory,
            env=self.environment, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert "Traceback" not in err, err
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def loaded(self, *arguments: str) -> set[str]:
        """Return the modules that a command line imports; for run also those of the monitors that are there."""
        err = self(*arguments, python=("-X", "importtime")).stderr
        if arguments[0] == "run":
            err += "".join(log.read_text() for log in self.root.glob("containers/*/monitor.log"))
        return {line.rpartition("|")[2].strip() for line in err.splitlines() if line.startswith("import time:")}

    def loaded_before(self, *arguments: str) -> dict[str, set[str]]:
        """Return the modules that a `run` has loaded when it begins its container's monitor, and when it tells it."""
        err = self(*arguments, program=("-c", WATCH_MONITOR)).stderr
        return {line.split()[0]: set(line.split()[1:]) for line in err.splitlines()}

    def lines(self, *arguments: str) -> list[str]:
        return self(*arguments).stdout.splitlines()


def small_tar() -> bytes:
    """Return the tar of a tiny root file system."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("etc", "bin"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for name, content in (("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"), ("bin/tool", b"#!/bin/sh\n" * 50)):
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(content), 0o755
            tar.addfile(file, io.BytesIO(content))
    return buffer.getvalue()
