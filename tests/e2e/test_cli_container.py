"""Containers and RUN through the real command line, with the machine's own runtime."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from busybox_rootfs import fill, needs_root, usable_runtimes
from cli_process import WORDY, Cli, heavy

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
def cli(tmp_path: Path, base: bytes) -> Iterator[Cli]:
    made = Cli(tmp_path)
    made("import", "-", "box", input=base)
    yield made
    for container in made.lines("ps", "-aq"):
        made("rm", "-f", container)


def kernels(modules: set[str]) -> set[str]:
    return {name.removeprefix("pylayers._native.") for name in modules if name.startswith("pylayers._native.")}


def test_run_and_commit_import_what_they_use(cli: Cli) -> None:
    cli("run", "--name", "changed", "box", "touch", "/etc/made")
    cli("commit", "changed", "made")  # the driver is chosen, and its modules are compiled
    ran = cli.loaded("run", "--rm", "box", "true") | cli.loaded("run", "--name", "seen", "box", "true")
    cli("run", "--name", "again", "box", "touch", "/etc/again")
    committed = cli.loaded("commit", "again", "made")
    assert "pylayers.container.monitor" in ran
    assert "pylayers.diff.write" in committed
    assert not heavy(ran | committed, WORDY)
    assert not (ran | committed) & {"threading", "encodings.ascii"}
    assert not {name for name in ran if name.split(".")[0] == "blake3"}
    assert kernels(ran) <= {"headstart", "sysmount", "clear"}
    assert kernels(committed) <= {"sysmount", "clear", "walk", "tardiff", "changeset", "tarwrite"}
    assert not {name for name in committed if name.startswith(("pylayers.container.start", "pylayers.engine.create"))}
    assert not committed & {f"pylayers.snapshot.{name}" for name in ("mount", "loop", "projectquota", "treechange")}
    assert not committed & {"pylayers.cli.form", "pylayers.store.step"}


def test_run_imports_little_before_its_monitor(cli: Cli) -> None:
    """What a start waits for: the monitor begins early, and nothing is loaded that a plain start leaves unused."""
    cli("run", "--rm", "box", "true")  # the image is unpacked
    found = cli.loaded_before("run", "--rm", "box", "true")
    begun, told = found["begin"], found["tell"]
    assert "pylayers.engine.container" in begun
    assert "pylayers.store.store" in begun
    later = ("engine.create", "image", "oci", "snapshot.select", "store.blob", "store.lease", "store.metadata")
    assert not {name for name in begun if name.startswith(tuple(f"pylayers.{part}" for part in later))}
    assert {"pylayers.snapshot.select", "pylayers.engine.create", "_sqlite3"} <= told
    assert kernels(told) == {"headstart"}
    assert not told & {"select", "pylayers.cli.form"}
    assert not heavy(told, WORDY)
    stores = ("entry", "row", "index", "layer", "layerstore", "layerwriter", "state", "step", "statcache")
    assert not told & {f"pylayers.store.{name}" for name in stores}
    unused = ("mount", "imagemount", "loop", "projectquota", "backing", "treechange", "erofstrial", "overlaytrial")
    assert not told & {f"pylayers.snapshot.{name}" for name in unused}
    assert not {name for name in told if name.startswith(("pylayers.volume.", "pylayers.diff.whiteout"))}


def test_run_passes_output_input_and_exit_code(cli: Cli) -> None:
    script = "echo $A $PWD; echo bad >&2; exit 7"
    done = cli("run", "--rm", "-e", "A=1", "-w", "/etc", "box", "sh", "-c", script, code=7)
    assert (done.stdout, done.stderr) == ("1 /etc\n", "bad\n")
    assert cli("run", "--rm", "-i", "box", "cat", input=b"given").stdout == "given"
    assert cli("run", "--rm", "box", "echo", "-n", "--rm", "--").stdout == "--rm --"
    assert cli.lines("ps", "-aq") == []


def test_failures_of_run(cli: Cli) -> None:
    cli("run", "--rm", "nope", "true", code=125)
    cli("run", "--rm", "box", code=125)
    cli("run", "--rm", "box", "/nowhere", code=127)
    cli("run", "--rm", "box", "/etc/not-executable", code=126)
    cli("run", "--rm", "-it", "box", "sh", code=125)
    assert cli.lines("ps", "-aq") == []


def test_life_of_a_container(cli: Cli) -> None:
    made = cli("run", "-d", "--name", "web", "--cidfile", "cid", "box", "sh", "-c", "echo up; echo odd >&2; sleep 100")
    container = made.stdout.strip()
    assert (cli.directory / "cid").read_text() == container
    cli("create", "--name", "other", "--cidfile", "cid", "box", "true", code=2)
    titles, row = cli.lines("ps")
    assert titles.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"]
    assert row.startswith(container[:12])
    assert " Up " in row
    assert row.endswith("web")
    told = cli("exec", "-w", "/not/there", "web", "true", code=127).stderr
    assert told.endswith("hint: the working directory has to be there already\n")
    told = cli("exec", "-u", "nobody-such", "web", "true", code=125).stderr
    assert "hint: name one of the image's /etc/passwd" in told
    inside = cli("exec", "-e", "X=y", "-w", "/etc", "web", "sh", "-c", "echo $X $PWD; exit 5", code=5)
    assert inside.stdout == "y /etc\n"
    cli("create", "--name", "web", "box", "true", code=4)
    cli("rmi", "box", code=5)
    cli("rm", "web", code=5)
    assert cli.lines("stop", "-t", "0", "web") == ["web"]
    assert cli.lines("wait", "web") == ["137"]
    shown = cli("logs", "web")
    assert (shown.stdout, shown.stderr) == ("up\n", "odd\n")
    assert cli("logs", "--tail", "0", "web").stdout == ""
    assert cli("logs", "-t", "-n", "5", "web").stdout.endswith("Z up\n")
    assert json.loads(cli("ps", "-a", "--format", "json").stdout)["ExitCode"] == 137
    assert json.loads(cli("inspect", "web").stdout)[0]["Id"] == container
    assert cli.lines("rm", "web") == ["web"]
    cli("rm", "web", code=3)
    cli("logs", "web", code=3)


def test_start_attached_again(cli: Cli) -> None:
    cli("create", "--name", "job", "box", "sh", "-c", "echo again; exit 3")
    assert " Created " in cli.lines("ps", "-a")[1] + " "
    assert cli("start", "-a", "job", code=3).stdout == "again\n"
    assert cli("start", "-a", "job", code=3).stdout == "again\n"
    assert "Exited (3)" in cli.lines("ps", "-a")[1]
    told = cli("container", "prune", "-f").stdout
    assert told.startswith("Deleted Containers:\n")
    assert re.search(r"^Total reclaimed space: \d\S*B$", told, re.MULTILINE)


def test_kill(cli: Cli) -> None:
    cli("run", "-d", "--name", "k", "box", "sleep", "100")
    cli("kill", "-s", "NOPE", "k", code=2)
    assert cli.lines("kill", "k") == ["k"]
    assert cli.lines("wait", "k") == ["137"]
    cli("kill", "k", code=5)


def test_diff_and_commit(cli: Cli) -> None:
    cli("run", "--name", "c", "box", "sh", "-c", "echo new > /new; rm /etc/not-executable")
    changes = cli.lines("diff", "c")
    assert {"A /new", "D /etc/not-executable"} <= set(changes)
    cli("commit", "-a", "me", "-m", "note", "-c", 'CMD ["cat", "/new"]', "c", "made:1")
    assert cli("run", "--rm", "made:1").stdout == "new\n"
    assert cli("inspect", "-f", "{{.Author}}", "made:1").stdout == "me\n"


def test_volumes(cli: Cli) -> None:
    cli("run", "--rm", "-v", "data:/d", "box", "sh", "-c", "echo kept > /d/f")
    assert cli("run", "--rm", "-v", "data:/d:ro", "box", "cat", "/d/f").stdout == "kept\n"
    host = cli.directory / "host"
    host.mkdir()
    cli("run", "--rm", "-v", f"{host}:/h", "box", "touch", "/h/x")
    assert (host / "x").exists()
    cli("run", "-d", "--name", "user", "-v", "data:/d", "box", "sleep", "100")
    cli("volume", "rm", "data", code=5)


def test_failing_step_shows_its_last_lines(cli: Cli) -> None:
    done = cli("build", "-", input=b"FROM box\nRUN true\nRUN echo first; echo last; exit 4\n", code=10)
    assert "#3 ERROR" in done.stderr
    assert "------\n > RUN echo first; echo last; exit 4:\nfirst\nlast\n------\npylayers: error: " in done.stderr
    quiet = cli("build", "-q", "-", input=b"FROM box\nRUN echo why; exit 4\n", code=10)
    assert quiet.stdout == ""
    assert "why\n" in quiet.stderr


def test_output_lines_carry_their_step(cli: Cli) -> None:
    done = cli("build", "-", input=b"FROM box\nRUN echo hello; touch /x\n")
    assert any(line.startswith("#2 ") and line.endswith(" hello") for line in done.stderr.splitlines())
    assert "#2 CACHED" in cli("build", "-", input=b"FROM box\nRUN echo hello; touch /x\n").stderr


INTERRUPTED_IMPORT = """
import sys
from pylayers import cli
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
cli.main()
"""


@pytest.mark.parametrize("module", ["pylayers.cli.failure", "pylayers.cli.group"])
def test_an_interrupt_while_modules_are_loaded_is_quiet(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT, module, "images"], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_interrupted_build_leaves_with_130(cli: Cli) -> None:
    (cli.directory / "Dockerfile").write_text("FROM box\nRUN echo ready; sleep 100\n")
    with subprocess.Popen(
        cli.command("build", "."), stderr=subprocess.PIPE, cwd=cli.directory, env=cli.environment,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith(b" ready\n"):
                break
        process.send_signal(2)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert b"Traceback" not in rest
