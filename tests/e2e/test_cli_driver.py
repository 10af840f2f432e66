"""Storage drivers through the real command line: listed, probed, refused, and a container moved between two of them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from busybox_rootfs import fill, needs_root, usable_runtimes
from cli_process import Cli, small_tar

from pylayers.snapshot import select

INVALID, CONFLICT, UNSUPPORTED, UNUSABLE = 2, 5, 7, 8
pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if "runc" not in usable_runtimes():
        pytest.skip("runc does not work here")
    root = fill(tmp_path_factory.mktemp("rootfs") / "root")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".")
    return buffer.getvalue()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """Give a root whose data is vfs's."""
    made = Cli(tmp_path)
    made("import", "-", "base", input=small_tar())
    made("--driver", "vfs", "create", "--name", "first", "base", "true")
    yield made
    for container in made.lines("ps", "-aq"):
        made("rm", "-f", container)


def rows(cli: Cli, *options: str) -> dict[str, dict[str, object]]:
    """Read driver ls as JSON."""
    return {row["Name"]: row for row in map(json.loads, cli.lines(*options, "driver", "ls", "--format", "json"))}


def needs_driver(cli: Cli, name: str) -> None:
    row = rows(cli)[name]
    if not row["Usable"]:
        pytest.skip(f"{name}: {row['Reason']}")


def test_every_driver_is_listed_and_probed(cli: Cli) -> None:
    found = rows(cli)
    assert tuple(found) == select.DRIVER_ORDER
    assert not any("probe-" in str(row["Reason"]) for row in found.values()), "told by a name that is gone"
    assert [name for name, row in found.items() if row["Chosen"]] == ["vfs"]
    assert [name for name, row in found.items() if row["HasData"]] == ["vfs"]
    for name, row in found.items():
        done = cli("driver", "probe", name, code=0 if row["Usable"] else UNUSABLE)
        if row["Usable"]:
            assert done.stdout == f"{name} works here\n"
            assert row["Reason"] == ""
        else:
            assert row["Reason"]
            assert f"{name} does not work here: " in done.stderr
    cli("driver", "probe", "floppy", code=INVALID)
    assert set(os.listdir(cli.root / "tmp")) <= {"sweep.lock"}


def test_a_wish_against_the_data_says_what_to_do(cli: Cli) -> None:
    needs_driver(cli, "overlay2")
    before = sorted(cli.root.rglob("vfs/*"))
    done = cli("--driver", "overlay2", "create", "base", "true", code=CONFLICT)
    assert "has snapshots of driver vfs" in done.stderr
    assert "pylayers driver migrate vfs overlay2" in done.stderr
    assert "leave out --driver" in done.stderr
    cli.environment["PYLAYERS_DRIVER"] = "overlay2"
    cli("create", "base", "true", code=CONFLICT)
    done = cli("driver", "ls")
    assert "warning: storage driver overlay2 was asked for" in done.stderr
    assert not any(row["Chosen"] for row in rows(cli).values())
    del cli.environment["PYLAYERS_DRIVER"]
    assert sorted(cli.root.rglob("vfs/*")) == before
    assert cli.lines("ps", "-a", "--format", "{{.Names}}") == ["first"]


def test_a_container_moves_and_runs(cli: Cli, base: bytes) -> None:
    needs_driver(cli, "overlay2")
    cli("import", "-", "box", input=base)
    script = "test -e /seen && cat /seen || echo -n 'content of before' >/seen; rm -f /etc/group; echo $?"
    assert cli("run", "--name", "worker", "box", "sh", "-c", script).stdout == "0\n"
    told = cli.lines("diff", "worker")
    cli("run", "-d", "--name", "sleeper", "box", "sleep", "60")
    done = cli("driver", "migrate", "vfs", "overlay2", code=CONFLICT)
    assert "cannot migrate while containers run: sleeper" in done.stderr
    assert "pylayers stop sleeper" in done.stderr
    cli("stop", "-t", "0", "sleeper")
    done = cli("driver", "migrate", "vfs", "overlay2")
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == "moved from vfs to overlay2: 3 containers, 2 image snapshots\n"
    assert [name for name, row in rows(cli).items() if row["HasData"]] == ["overlay2"]
    assert cli.lines("diff", "worker") == told
    assert cli("start", "-a", "worker").stdout == "content of before0\n"
    assert cli.lines("inspect", "worker", "--format", "{{.GraphDriver.Name}}") == ["overlay2"]
    cli("commit", "worker", "again")
    assert cli("run", "--rm", "again", "cat", "/seen").stdout == "content of before"
    assert cli("driver", "migrate", "vfs", "overlay2").stdout == ""


def test_a_size_that_cannot_be_kept_leaves_nothing(cli: Cli) -> None:
    before = sorted(path for path in cli.root.rglob("*") if "image" not in path.parts)
    done = cli("create", "--storage-opt", "size=10G", "base", "true", code=UNSUPPORTED)
    assert "--storage-opt size: storage driver vfs cannot limit" in done.stderr
    assert "pquota" in done.stderr
    for wrong in ("size", "speed=10", "size=much"):
        cli("create", "--storage-opt", wrong, "base", "true", code=INVALID)
    assert sorted(path for path in cli.root.rglob("*") if "image" not in path.parts) == before


def test_sizes_are_told(cli: Cli) -> None:
    titles, row = cli.lines("ps", "-as")
    assert titles.endswith("SIZE")
    assert "(virtual " in row
    assert "(virtual " in cli.lines("ps", "-a", "--format", "{{.Size}}")[0]
    assert "SIZE" not in cli.lines("ps", "-a")[0]
    found = json.loads(cli("inspect", "-s", "first").stdout)[0]
    assert 0 < found["SizeRw"] <= found["SizeRootFs"]
    assert found["HostConfig"]["StorageOpt"] is None
    assert "SizeRw" not in json.loads(cli("inspect", "first").stdout)[0]
