"""A build that is killed leaves nothing behind: the next open unmounts its root and drops its snapshot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pylayers.engine import Engine
from pylayers.store.mountpoint import mount_points_below
from tests.e2e.busybox_rootfs import fill

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a root file system")]


def test_a_killed_run_is_cleaned_up_by_the_next_open(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Engine.open(root) as engine:
        subprocess.run(["tar", "-cf", tmp_path / "base.tar", "-C", fill(tmp_path / "base"), "."], check=True)
        engine.images.import_(tmp_path / "base.tar", "base")
    (tmp_path / "context").mkdir()
    dockerfile = tmp_path / "context" / "Dockerfile"
    dockerfile.write_text("FROM base\nRUN echo begun > /begun && echo begun && sleep 20\n")
    script = f"from pylayers.engine import Engine; Engine.open({str(root)!r}).build({str(dockerfile)!r})"
    build = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 20
    while not any((root / "overlay2").glob("*/diff/begun")) and time.monotonic() < deadline:
        assert build.poll() is None, build.stdout and build.stdout.read()
        time.sleep(0.05)
    assert mount_points_below(root / "tmp")
    build.send_signal(signal.SIGKILL)
    build.wait()
    with Engine.open(root) as engine:
        assert not mount_points_below(root)
        assert [name for name in os.listdir(root / "tmp") if name.startswith(("work", "gone"))] == []
        engine.system.collect()
        assert [found.name for found in engine.driver().walk() if found.name.startswith("build-")] == []
        dockerfile.write_text("FROM base\nRUN echo again > /again\n")
        assert engine.build(dockerfile.parent).steps[-1].diff_id is not None
