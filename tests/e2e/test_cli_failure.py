"""Bad input through the real command line: what is told, the exit code, and that nothing half-made is left behind."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from busybox_rootfs import fill, needs_root, usable_runtimes
from cli_process import CHECKOUT, Cli, small_tar

INVALID, NOT_FOUND, CONFLICT, DAMAGED, BUILD_FAILED, NO_SPACE, DENIED, MISSING_RUNTIME = 2, 3, 5, 6, 10, 11, 12, 13
NOBODY = 65534


@pytest.fixture(scope="module")
def runnable(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if os.geteuid() != 0 or "runc" not in usable_runtimes():
        pytest.skip("needs root and runc")
    root = fill(tmp_path_factory.mktemp("rootfs") / "root")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".")
    return buffer.getvalue()


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "ctx").mkdir()
    (tmp_path / "ctx" / "a").write_text("content")
    made = Cli(tmp_path)
    made("import", "-", "base", input=small_tar())
    return made


@pytest.fixture
def box(cli: Cli, runnable: bytes) -> Cli:
    cli("import", "-", "box", input=runnable)
    return cli


def look(cli: Cli) -> dict[str, object]:
    """Return all that a failed command could leave: files (but for locks and caches), mounts, processes, records."""
    skipped = ("buildkit", "runtimes/", "image/metadata.db", "image/collect.lock")
    files = sorted(
        name
        for path in cli.root.rglob("*")
        if not (name := str(path.relative_to(cli.root))).startswith(skipped)
    )
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(cli.directory) in line]
    processes = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(cli.root).encode() in read_quietly(path)
    ]
    return {"files": files, "mounts": mounts, "processes": processes, "containers": cli.lines("ps", "-aq")}


def read_quietly(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@contextmanager
def leaving_nothing(cli: Cli) -> Iterator[None]:
    cli("ps", "-aq")
    before = look(cli)
    yield
    assert look(cli) == before


def build(cli: Cli, dockerfile: str, *options: str, code: int) -> str:
    (cli.directory / "ctx" / "Dockerfile").write_text(dockerfile)
    return cli("build", *options, "ctx", code=code).stderr


@pytest.mark.parametrize(
    ("dockerfile", "options", "code", "words"),
    [
        ("FROM base\nCOPPY a /\n", (), INVALID, ("ctx/Dockerfile:2", "COPPY", "did you mean")),
        ("FROM base\nCOPY --chwon=1 a /\n", (), INVALID, ("ctx/Dockerfile:2", "chwon", "did you mean")),
        ("FROM base\nCOPY missing /x\n", (), NOT_FOUND, ("ctx/Dockerfile:2", "missing")),
        ("FROM base AS one\nCOPY --from=two a /\n", (), NOT_FOUND, ("ctx/Dockerfile:2", "two")),
        ("FROM base AS one\n", ("--target", "tow"), INVALID, ("tow",)),
        ("FROM Bad//ref\n", (), INVALID, ("ctx/Dockerfile:1", "Bad//ref")),
        ("FROM nowhere\n", (), NOT_FOUND, ("ctx/Dockerfile:1", "pylayers import")),
        ("FROM base\nRUN --mount=type=bnd,target=/x true\n", (), INVALID, ("ctx/Dockerfile:2", "bnd")),
        ("FROM base\n", ("--nosuchflag",), INVALID, ("nosuchflag", "--help")),
        ("FROM base\n", ("-t", "UPPER:bad:tag"), INVALID, ("UPPER",)),
        ("FROM base\n", ("--secret", "id=x,src=/not/there"), NOT_FOUND, ("/not/there",)),
        ("", (), INVALID, ("Dockerfile",)),
    ],
)
def test_a_bad_build_says_where_and_leaves_nothing(
    cli: Cli, dockerfile: str, options: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    with leaving_nothing(cli):
        told = build(cli, dockerfile, *options, code=code)
        for word in words:
            assert word in told, told


@needs_root
def test_a_failing_run_tells_its_status_step_and_last_lines(box: Cli) -> None:
    box("run", "--rm", "box", "true")
    images = box("images", "-aq").stdout
    with leaving_nothing(box):
        told = build(box, "FROM box\nRUN echo first; echo last words >&2; touch /made; exit 7\n", code=BUILD_FAILED)
    for word in ("ctx/Dockerfile:2", "exit code: 7", "last words", "RUN echo first"):
        assert word in told, told
    assert box("images", "-aq").stdout == images


@needs_root
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mount", "type=bind,source=/nowhere/at/all,target=/x"), ("/nowhere/at/all",)),
        (("--mount", "type=bind,target=/x"), ("field Source",)),
        (("--mount", "type=what,target=/x"), ("what",)),
        (("--mount", "type=bind,source=/tmp,target=/x,colour=red"), ("colour",)),
        (("--mount", "nonsense"), ("nonsense",)),
        (("-v", "rel:ative"), ("ative",)),
        (("-v", "bad name:/x"), ("bad name",)),
        (("--network", "what"), ("what",)),
        (("-e", "=x"), ("=x",)),
        (("--name", "bad/name"), ("bad/name",)),
        (("--user", "nobody-here"), ("nobody-here",)),
    ],
)
def test_a_bad_run_leaves_no_container_and_no_volume(
    box: Cli, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    box("run", "--rm", "box", "true")
    with leaving_nothing(box):
        told = box("run", "--rm", *options, "box", "true", code=125).stderr
        for word in words:
            assert word in told, told
        assert len(told.strip().splitlines()) <= 2, told
    assert box.lines("volume", "ls", "-q") == []


@needs_root
def test_without_a_runtime(box: Cli) -> None:
    box("run", "--rm", "box", "true")
    box.environment["PATH"] = "/nowhere"
    with leaving_nothing(box):
        told = build(box, "FROM box\nRUN true\n", code=MISSING_RUNTIME)
        assert "runc" in told
        assert "hint:" in told
        assert "runc" in box("run", "--rm", "box", "true", code=125).stderr


@needs_root
def test_no_space(cli: Cli) -> None:
    """A COPY of more than the data root's file system holds: the error is named, and what was written is gone."""
    small = cli.directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], check=True)
    try:
        cli.root = small / "root"
        cli("import", "-", "base", input=small_tar())
        (cli.directory / "ctx" / "large").write_bytes(os.urandom(20 << 20))
        with leaving_nothing(cli):
            told = build(cli, "FROM base\nCOPY large /\n", code=NO_SPACE)
            assert "hint:" in told
        assert os.statvfs(small).f_bavail * os.statvfs(small).f_bsize > 4 << 20
        (cli.directory / "ctx" / "large").write_bytes(b"small")
        build(cli, "FROM base\nCOPY large /\n", code=0)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@needs_root
def test_not_root(box: Cli) -> None:
    """Another user is refused the root of root; what needs root says so."""
    command = [
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-m", "pylayers.cli",
    ]  # fmt: skip
    if shutil.which("setpriv") is None or not os.access(sys.executable, os.X_OK):
        pytest.skip("no setpriv here")
    reachable = subprocess.run([*command[:4], sys.executable, "-c", "import os"], capture_output=True, check=False)
    readable = subprocess.run(
        [*command[:4], sys.executable, "-c", "import pylayers.cli"],
        capture_output=True, check=False, env={"PYTHONPATH": str(CHECKOUT)}, cwd="/",
    )  # fmt: skip
    if reachable.returncode or readable.returncode:
        pytest.skip("another user cannot reach this Python or this checkout")
    environment = {"PYTHONPATH": str(CHECKOUT), "PATH": os.environ["PATH"], "HOME": "/nonexistent"}

    def attempt(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, cwd="/", check=False)
        assert "Traceback" not in done.stderr
        return done

    box.root.chmod(0o700)
    before = look(box)
    done = attempt("--root", str(box.root), "images")
    assert done.returncode == DENIED, done.stderr
    done = attempt("images")  # no home to keep a data root in
    assert done.returncode == DENIED, done.stderr
    assert "error:" in done.stderr
    assert look(box) == before


@needs_root
def test_a_read_only_root_is_told_as_one(cli: Cli) -> None:
    """Who is root already isn't told to become it."""
    place = cli.directory / "place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        cli.root = place / "root"
        cli("import", "-", "base", input=small_tar())
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        told = cli("images", code=DENIED).stderr
        assert "Read-only file system" in told
        assert "read-write" in told
        assert "run as root" not in told
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_missing_source_beside_a_link_that_leads_in_circles(cli: Cli) -> None:
    """The hint is looked for among all names, and must not fail in the error's place."""
    (cli.directory / "ctx" / "loop").symlink_to("loop")
    told = build(cli, "FROM base\nCOPY b /\n", code=NOT_FOUND)
    assert "'b' not found in the build context" in told
    assert "circles" not in told


def test_a_context_that_is_not_there(cli: Cli) -> None:
    told = cli("build", "nowhere", code=NOT_FOUND).stderr
    assert told == "pylayers: error: unable to prepare context: path 'nowhere' not found\n"
    told = cli("build", "-f", "ctx/a", "nowhere", code=NOT_FOUND).stderr
    assert "path 'nowhere' not found" in told


def test_a_name_is_never_mended_into_another_bad_one(cli: Cli) -> None:
    assert "hint: use 'good'" in cli("tag", "base", "GOOD", code=INVALID).stderr
    assert "hint" not in cli("tag", "base", "NOT good", code=INVALID).stderr


def test_a_damaged_tar_is_told_with_its_place(cli: Cli) -> None:
    content = bytearray(small_tar())
    content[1024 + 148 : 1024 + 156] = b"garbage!"  # the checksum of the third header
    with leaving_nothing(cli):
        told = cli("import", "-", "damaged", input=bytes(content), code=DAMAGED).stderr
        assert "1024" in told, told
        told = cli("import", "-", "cut", input=small_tar()[:700], code=DAMAGED).stderr
        assert "error:" in told
        (cli.directory / "folder").mkdir()
        told = cli("import", "folder", "x", code=INVALID).stderr
        assert "folder" in told


def test_a_stat_cache_that_is_no_file_is_told(cli: Cli) -> None:
    """A folder lies where the stat cache of the context is to be written: named, with the path."""
    build(cli, "FROM base\nCOPY a /\n", code=0)
    for path in (cli.root / "buildkit" / "stat").glob("*.idx"):
        path.unlink()
        path.mkdir()
    (cli.directory / "ctx" / "a").write_text("other")
    told = build(cli, "FROM base\nCOPY a /\n", code=CONFLICT)
    assert "is a directory" in told
    assert "rm -r" in told


def test_a_read_error_names_the_input(cli: Cli) -> None:
    """/proc/self/mem cannot be read at its beginning: an input/output error in the middle of an import."""
    with leaving_nothing(cli):
        told = cli("import", "/proc/self/mem", "x", code=1).stderr
        assert "/proc/self/mem" in told, told
        assert "write layer" not in told, told
