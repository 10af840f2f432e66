"""Images through the real command line: import, COPY-only builds, listing, tagging, removing; and its start-up."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_process import Cli, heavy, small_tar

DOCKERFILE = 'FROM ubuntu\nARG WHO=nobody\nLABEL who=$WHO\nCOPY a /srv/a\nWORKDIR /srv\nCMD ["/bin/tool"]\n'
ID = re.compile(r"sha256:[0-9a-f]{64}\n")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    context = tmp_path / "ctx"
    context.mkdir()
    (context / "a").write_text("content")
    (context / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "rootfs.tar").write_bytes(small_tar())
    return Cli(tmp_path)


@pytest.fixture
def ubuntu(cli: Cli) -> Cli:
    cli("import", "rootfs.tar", "ubuntu")
    return cli


def test_import_from_file_and_stdin(cli: Cli) -> None:
    first = cli("import", "rootfs.tar", "ubuntu", "-c", "ENV A=b", "-m", "hello").stdout
    assert ID.fullmatch(first)
    changed = cli("import", "rootfs.tar", "changed", "-c", "WORKDIR /a", "-c", "WORKDIR b/../c").stdout
    assert ID.fullmatch(changed)
    assert json.loads(cli("inspect", "changed").stdout)[0]["Config"]["WorkingDir"] == "/a/c"
    cli("rmi", "changed")
    piped = cli("import", "-c", "ENV A=b", "-", "piped:1", input=gzip.compress(small_tar())).stdout
    assert ID.fullmatch(piped)
    assert cli.lines("images", "--format", "{{.Repository}}:{{.Tag}}") == ["piped:1", "ubuntu:latest"]
    found = json.loads(cli("inspect", "ubuntu").stdout)
    assert found[0]["Config"]["Env"] == ["A=b"]
    assert found[0]["RepoTags"] == ["ubuntu:latest"]
    assert json.loads(cli("history", "ubuntu", "--format", "json").stdout)["Comment"] == "hello"


def test_build_then_nothing_to_do(ubuntu: Cli) -> None:
    first = ubuntu("build", "-t", "app:1", "-t", "other", "ctx")
    assert first.stdout == ""
    assert "#4 [stage 4/6] COPY a /srv/a\n#4 DONE" in first.stderr
    assert "naming to app:1\nnaming to other:latest\n" in first.stderr
    second = ubuntu("build", "-t", "app:1", "ctx")
    assert second.stderr.count("CACHED") == 6
    assert "6 of 6 steps cached" in second.stderr
    assert ubuntu.lines("images", "app", "-q") == ubuntu.lines("images", "other", "-q")
    titles, row = ubuntu.lines("images", "app")
    assert titles.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert row.split()[:2] == ["app", "1"]


def test_a_file_as_context(ubuntu: Cli) -> None:
    (ubuntu.directory / "ctx" / "Dockerfile2").write_text("FROM ubuntu\nCOPY a /two\n")
    ubuntu("build", "ctx/Dockerfile2", "-t", "two")
    assert ubuntu("history", "two", "--format", "{{.CreatedBy}}").stdout.splitlines()[0] == "COPY a /two # buildkit"


def test_results_on_stdout_and_in_files(ubuntu: Cli) -> None:
    files = ("--iidfile", "iid", "--metadata-file", "meta")
    done = ubuntu("build", "-q", "--build-arg", "WHO=me", "--label", "x=y", *files, "ctx")
    assert done.stderr == ""
    assert ID.fullmatch(done.stdout)
    assert (ubuntu.directory / "iid").read_text() == done.stdout.strip()
    told = json.loads((ubuntu.directory / "meta").read_text())
    assert told["containerimage.config.digest"] == done.stdout.strip()
    assert len(told["pylayers.steps"]) == 6
    labels = ubuntu("inspect", "-f", "{{json .Config.Labels}}", done.stdout.strip()).stdout
    assert json.loads(labels) == {"who": "me", "x": "y"}


def test_dockerfile_on_stdin(ubuntu: Cli) -> None:
    ubuntu("build", "-t", "one", "-f", "-", "ctx", input=b"FROM ubuntu\nCOPY a /from-stdin\n")
    ubuntu("build", "-t", "two", "-", input=b"FROM ubuntu\nLABEL a=b\n")
    assert set(ubuntu.lines("images", "--format", "{{.Repository}}")) == {"one", "two", "ubuntu"}


def test_rawjson(ubuntu: Cli) -> None:
    done = ubuntu("build", "--progress", "rawjson", "ctx")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [one["event"] for one in events].count("step_finished") == 6
    assert events[-1]["event"] == "build_finished"


def test_mistakes_are_told_with_their_place(ubuntu: Cli) -> None:
    (ubuntu.directory / "ctx" / "Bad").write_text("FROM ubuntu\nCOPPY a /\n")
    assert "ctx/Bad:2: " in ubuntu("build", "-f", "ctx/Bad", "ctx", code=2).stderr
    (ubuntu.directory / "ctx" / "Bad").write_text("FROM nowhere\n")
    assert "pylayers import" in ubuntu("build", "-f", "ctx/Bad", "ctx", code=3).stderr
    (ubuntu.directory / "ctx" / "Bad").write_text("FROM ubuntu\nCOPY missing /\n")
    assert "ctx/Bad:2: " in ubuntu("build", "-f", "ctx/Bad", "ctx", code=3).stderr
    ubuntu("build", "nowhere", code=3)
    ubuntu("import", "nowhere.tar", "x", code=3)
    ubuntu("import", "ctx/a", "x", code=2)
    ubuntu("import", "rootfs.tar", "Not/Lower", code=2)
    ubuntu("build", "-t", "UPPER", "ctx", code=2)
    ubuntu("history", "nope", code=3)
    ubuntu("tag", "nope", "x", code=3)
    assert "[]" in ubuntu("inspect", "nope", code=3).stdout


def test_tag_and_remove(ubuntu: Cli) -> None:
    ubuntu("tag", "ubuntu", "copy:2")
    assert ubuntu.lines("rmi", "copy:2") == ["Untagged: copy:2"]
    done = ubuntu("rmi", "nope", "ubuntu", code=3)
    assert "no such image: nope" in done.stderr
    assert done.stdout.startswith("Untagged: ubuntu:latest\nDeleted: sha256:")
    assert ubuntu.lines("images", "-q") == []
    ubuntu("rmi", "-f", "ubuntu")


def test_prune_asks(ubuntu: Cli) -> None:
    ubuntu("build", "-q", "ctx")
    refused = ubuntu("image", "prune", code=1, input=b"n\n")
    assert refused.stdout.endswith("Are you sure you want to continue? [y/N] ")
    assert len(ubuntu.lines("images", "-q")) == 2
    assert "\ndeleted: sha256:" in ubuntu("image", "prune", input=b"y\n").stdout
    assert len(ubuntu.lines("image", "ls", "-q")) == 1
    told = ubuntu("system", "prune", "-a", "-f").stdout.splitlines()
    assert told[:2] == ["Deleted Images:", "untagged: ubuntu:latest"]
    assert told[2].startswith("deleted: sha256:")
    assert told[-1].startswith("Total reclaimed space: ")
    assert ubuntu.lines("images", "-q") == []


def test_system(ubuntu: Cli) -> None:
    kinds = [line.split()[0] for line in ubuntu.lines("system", "df")]
    assert kinds == ["TYPE", "Images", "Containers", "Local", "Build"]
    assert "Images space usage:" in ubuntu("system", "df", "-v").stdout
    assert json.loads(ubuntu("system", "info", "--format", "json").stdout)["Images"] == 1
    assert ubuntu("system", "check").stdout == "no problems found\n"
    assert ubuntu("system", "rebuild").stdout == "database rebuilt: 1 image\n"
    assert ubuntu.lines("images", "--format", "{{.Repository}}") == ["ubuntu"]
    tar = next((ubuntu.root / "image" / "layers").rglob("layer.tar"))
    tar.chmod(0o600)
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    assert "layer" in ubuntu("system", "check", code=6).stdout


def test_drivers(cli: Cli) -> None:
    rows = [json.loads(line) for line in cli.lines("driver", "ls", "--format", "json")]
    assert {"overlay2", "vfs", "btrfs"} <= {row["Name"] for row in rows}
    assert sum(row["Chosen"] for row in rows) == 1
    cli("driver", "probe", "vfs")
    cli("driver", "probe", "nope", code=2)
    unusable = next(row["Name"] for row in rows if not row["Usable"])
    assert "does not work here" in cli("driver", "probe", unusable, code=8).stderr
    cli("--driver", "nope", "driver", "ls")


def test_volumes(cli: Cli) -> None:
    assert cli.lines("volume", "create", "data", "--label", "a=b") == ["data"]
    anonymous = cli.lines("volume", "create")[0]
    assert cli.lines("volume", "ls")[0].split() == ["DRIVER", "VOLUME", "NAME"]
    assert set(cli.lines("volume", "ls", "-q")) == {"data", anonymous}
    found = json.loads(cli("volume", "inspect", "data").stdout)[0]
    assert (found["Labels"], found["Mountpoint"]) == ({"a": "b"}, str(cli.root / "volumes" / "data" / "_data"))
    assert json.loads(cli("inspect", "data").stdout)[0]["Name"] == "data"
    assert f"Deleted Volumes:\n{anonymous}\n" in cli("volume", "prune", "-f").stdout
    cli("volume", "rm", "nope", "data", code=3)
    assert cli.lines("volume", "ls", "-q") == []
    cli("volume", "rm", "-f", "data")


def test_someone_elses_directory_is_not_touched(cli: Cli) -> None:
    cli.root.mkdir()
    (cli.root / "mine").write_text("x")
    cli("images", code=2)
    assert os.listdir(cli.root) == ["mine"]


def test_reader_that_leaves(ubuntu: Cli) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        ubuntu.command("images"), stdout=write_end, stderr=subprocess.PIPE, env=ubuntu.environment, timeout=60
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_terminal_shows_every_step(ubuntu: Cli) -> None:
    master, slave = pty.openpty()
    with subprocess.Popen(
        ubuntu.command("build", "-t", "app", "ctx"), stderr=slave, cwd=ubuntu.directory, env=ubuntu.environment
    ) as process:
        os.close(slave)
        shown = b""
        end = time.monotonic() + 60
        while (time.monotonic() < end and select.select([master], [], [], 1)[0]) or process.poll() is None:
            try:
                shown += os.read(master, 65536)
            except OSError:
                break
        assert process.wait(60) == 0
    os.close(master)
    assert "✔ [stage 4/6] COPY a /srv/a".encode() in shown
    assert b"naming to app:latest" in shown


def test_nothing_to_do_imports_nothing_heavy(ubuntu: Cli) -> None:
    ubuntu("build", "-t", "app", "ctx")
    modules = ubuntu.loaded("build", "-t", "app", "ctx")
    assert "pylayers.build.builder" in modules
    assert not heavy(modules)
    parts = ("pylayers.container", "pylayers.snapshot", "pylayers.transfer")
    assert not {name for name in modules if name.startswith(parts)}
    unused = ("_native.graft", "_native.filehash", "cli.form", "diff.merge", "store.index", "store.layerwriter")
    assert not modules & {"threading", "bisect", "zlib"}
    assert not modules & {f"pylayers.{name}" for name in unused}


def test_version_imports_no_engine(cli: Cli) -> None:
    modules = cli.loaded("version")
    ours = {name for name in modules if name.startswith("pylayers")}
    parts = ("", ".failure", ".group", ".session", ".version")
    assert ours <= {f"pylayers.cli{part}" for part in parts} | {"pylayers", "pylayers.thread"}
    assert not modules & {"numpy", "rich", "json", "sqlite3", "dataclasses", "subprocess"}
    assert not cli.root.exists()


def test_version_starts_fast(cli: Cli) -> None:
    """Hold the start-up to Python's own and 40 ms, doubled for machines that are slow or busy."""
    def shortest(arguments: list[str]) -> float:
        times = []
        for _ in range(8):
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], env=cli.environment, stdout=subprocess.DEVNULL, check=True)
            times.append(time.perf_counter() - began)
        return min(times)

    assert shortest(["-m", "pylayers.cli", "version"]) < shortest(["-c", "pass"]) + 0.080
