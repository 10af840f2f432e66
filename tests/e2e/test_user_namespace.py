"""Building and running as root of a user namespace: what can't work there is named, the rest does the work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pylayers.container.runtime import find_bubblewrap
from pylayers.snapshot.fusemount import PROGRAM, find_program
from tests.conformance.usernamespace import run_in_user_namespace
from tests.e2e.busybox_rootfs import fill
from tests.e2e.cli_process import Cli

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to map every id"),
    pytest.mark.skipif(find_program() is None or not Path("/dev/fuse").exists(), reason=f"no {PROGRAM} or /dev/fuse"),
    pytest.mark.skipif(find_bubblewrap() is None, reason="bubblewrap is not installed"),
]
DOCKERFILE = """FROM base:1
RUN echo made > /made && rm /etc/group
COPY file /file
"""


class Inside:
    """The command line in a user namespace."""

    def __init__(self, directory: Path) -> None:
        self._cli = Cli(directory)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = run_in_user_namespace(self._cli.command(*arguments), self._cli.environment, timeout_s=60)
        assert "Traceback" not in done.stdout, done.stdout
        assert done.returncode == code, done.stdout
        return done.stdout


def test_build_and_run(tmp_path: Path) -> None:
    root = fill(tmp_path / "tree")
    (root / "dev").mkdir()
    os.mknod(root / "dev" / "console", 0o020600, os.makedev(5, 1))
    subprocess.run(["tar", "-C", str(root), "-cf", str(tmp_path / "base.tar"), "."], check=True)
    shutil.rmtree(root)
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / "file").write_text("copied\n")
    inside = Inside(tmp_path)
    inside("import", str(tmp_path / "base.tar"), "base:1")
    inside("build", "-t", "app", str(context))
    told = inside("run", "--rm", "app", "sh", "-c", "cat /made /file; test -e /etc/group || echo gone; id -u")
    assert told.split() == ["made", "copied", "gone", "0"]
    inside("run", "--name", "box", "app", "sh", "-c", "echo x > /new; rm /file; exit 3", code=3)
    assert {tuple(line.split()) for line in inside("diff", "box").splitlines()} == {("A", "/new"), ("D", "/file")}
    inside("commit", "box", "changed")
    assert inside("run", "--rm", "changed", "sh", "-c", "cat /new; ls /").split()[0] == "x"
    lines = inside("driver", "ls", "--format", "json").splitlines()
    drivers = {one["Name"]: one for one in map(json.loads, lines)}
    assert drivers["fuse-overlayfs"]["Chosen"]
    for name in ("erofs", "overlay2", "overlay"):
        assert not drivers[name]["Usable"]
        assert drivers[name]["Reason"]
    told = inside("--runtime", "runc", "run", "--rm", "app", "true", code=125) if shutil.which("runc") else ""
    assert "user namespace" in told or not shutil.which("runc")
